"""`fedhlm generate`: prompts continued here and now, by the routing that a run learns."""

from __future__ import annotations

import json
import logging
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fedhlm_app.cli.coloured import ColouredText, account
from fedhlm_app.cli.completing import model_option, preset_option, set_option
from fedhlm_app.cli.error_log import ends_with, say
from fedhlm_app.cli.interrupting import INTERRUPTED
from fedhlm_app.cli.lazy import command_app
from fedhlm_app.cli.policy import (
    Chosen,
    ClusterOption,
    LlmAddressOption,
    RunOption,
    choose_policy,
)
from fedhlm_app.cli.reaching import reach_llm, told_of_loading
from fedhlm_app.cli.run import BAD_SETTINGS, FAILED
from fedhlm_app.settings import Settings, SettingsError
from hlm.wire import WireError

if TYPE_CHECKING:
    from fedhlm_app.client.prompted import Ask, Continuation, PromptedModel
    from hlm.arrays import IntArray

generate_app = command_app(name="generate")

STANDARD_INPUT = "-"


@generate_app.command()
def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="[PROMPT]", help="Text to continue; - or none: standard input."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Prompts, one on each line.")
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", "-n", help="Most new tokens of a text.")] = 60,
    slm: Annotated[str | None, model_option()] = None,
    llm: Annotated[str | None, model_option()] = None,
    run: RunOption = None,
    cluster: ClusterOption = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Keep drafts of at most this uncertainty, -1 to 1; 0.5 by default."),
    ] = None,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", "-u", help="Show each token's.")
    ] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put each prompt into the tokenizer's chat template.")
    ] = False,
    decoding: Annotated[str | None, typer.Option(help="greedy (default) or sampled.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of sampled decoding.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of sampled decoding.")] = None,
    llm_address: LlmAddressOption = None,
    threads: Annotated[
        int, typer.Option(help="Processor threads of the models; 1 is fastest for small ones.")
    ] = 1,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for each prompt, on a line.")
    ] = False,
    preset: Annotated[str | None, preset_option()] = None,
    overrides: Annotated[list[str] | None, set_option("Any setting; may be repeated.")] = None,
) -> None:
    """Continue prompts: the small model writes, the large one decides what it is not sure of.

    - `fedhlm generate "Shares of the airline"`

    - `fedhlm generate "Shares of the airline" --threshold 0.2 --uncertainty`

    - `echo "Shares of the airline" | fedhlm generate --tokens 20`

    - `fedhlm generate --run runs/2026-... --file prompts.txt --json`

    - `fedhlm generate "Once upon a time" --slm ./small --llm ./large`

    Colours say who decided each token; where output is no terminal, or NO_COLOR is set, it is plain
    text. Where the LLM at `--llm-address` does not answer, the small model goes on alone and says
    so. Exit status: 0 when there is text, 1 when the LLM refuses what it is asked, 2 when a prompt
    or a setting is wrong.
    """
    errors = Console(stderr=True, highlight=False)
    given: dict[str, object] = {
        "slm": slm,
        "llm": llm,
        "decoding": decoding,
        "temperature": temperature,
        "seed": seed,
        "llm-address": llm_address,
        "initial-threshold": threshold,
        "preset": preset,
    }
    with (
        ends_with(BAD_SETTINGS, ValueError, OSError, trace=True),
        told_of_loading(),
    ):
        for name, number in (("tokens", tokens), ("threads", threads)):
            if number < 1:
                raise SettingsError(f"--{name} {number}: must be at least 1")
        prompts = read_prompts(prompt, file)
        chosen = choose_policy(given, overrides or [], run, cluster)
        model = open_model(chosen.settings, threads)
        read = [
            model.read_prompt(
                [{"role": "user", "content": one}] if chat else one, tokens, named="--tokens"
            )
            for one in prompts
        ]
    screen = None
    if not as_json:
        screen = ColouredText(Console(highlight=False), uncertainty=uncertainty, chat=chat)
        screen.legend(_possible_stages(chosen.settings))
    begin = time.perf_counter()
    answers = _write_all(model, chosen, screen, prompts, read, tokens, errors)
    if not as_json:
        if errors.is_terminal:
            errors.print()
        words = account(answers, time.perf_counter() - begin, chosen.words)
        errors.print(words, markup=False, soft_wrap=True)


def _write_all(
    model: PromptedModel,
    chosen: Chosen,
    screen: ColouredText | None,
    prompts: list[str],
    read: list[IntArray],
    tokens: int,
    errors: Console,
) -> list[Continuation]:
    """Continue one prompt after the other, and say if the LLM was missed."""
    from fedhlm_app.client.prompted import Ask

    # What goes wrong is told once, below the text and not within it.
    logging.disable(logging.WARNING)
    answers: list[Continuation] = []
    try:
        with ends_with(FAILED, WireError):
            for number, (one, ids) in enumerate(zip(prompts, read, strict=True), 1):
                answers.append(_write(model, chosen, screen, one, Ask(ids, tokens, number)))
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    finally:
        logging.disable(logging.NOTSET)
    if lost := sum(answer.stages["unresolved"] for answer in answers):
        why = model.uplink.link.problem or "some of its answers did not come"
        say(errors, f"the small model wrote {lost} tokens alone that the LLM was to decide: {why}")
    return answers


def _write(
    model: PromptedModel,
    chosen: Chosen,
    screen: ColouredText | None,
    prompt: str,
    ask: Ask,
) -> Continuation:
    """Continue a prompt, on the screen or, without one, as JSON."""
    begin = time.perf_counter()
    if screen is None:
        (answer,) = model.continued([ask], chosen.policy)
        ms = round(1000 * (time.perf_counter() - begin), 1)
        told = {"prompt": prompt, **answer.as_json(), "ms": ms}
        print(json.dumps({**told, "certified": chosen.promise or None}), flush=True)
        return answer
    screen.prompt(prompt)
    try:
        shown = replace(ask, on_token=screen.token)
        return model.continued([shown], chosen.policy, drafting=screen.uncertainty)[0]
    finally:
        screen.end()


def read_prompts(prompt: str | None, file: Path | None) -> list[str]:
    """The prompts of the command line, of a file's lines, or of standard input.

    Raises
    ------
    SettingsError
        When there is none, or what should hold some cannot be read as text.
    """
    if prompt is not None and file is not None:
        raise SettingsError("PROMPT and --file: give one of them")
    no_prompt = 'no prompt: give one, as in fedhlm generate "Shares of the"'
    try:
        if file is not None:
            lines = file.read_text("utf-8").splitlines()
            if not (found := [line for line in lines if line.strip()]):
                raise SettingsError(f"--file '{file}': must have a prompt on at least one line")
            return found
        if prompt is None and sys.stdin.isatty():
            raise SettingsError(no_prompt)
        if prompt in (None, STANDARD_INPUT):
            prompt = sys.stdin.buffer.read().decode("utf-8").rstrip("\n")
        if not prompt or prompt.isspace():
            raise SettingsError(no_prompt)
        return [prompt]
    except OSError as error:
        raise SettingsError(f"--file '{file}': cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        where = "standard input" if file is None else f"--file '{file}'"
        raise SettingsError(f"{where}: is no text in UTF-8") from None


def open_model(settings: Settings, threads: int) -> PromptedModel:
    """The small model with its way to the LLM.

    Raises
    ------
    ValueError, OSError
        When either cannot be had, or they are no pair.
    """
    from fedhlm_app.client.prompted import PromptedModel

    return PromptedModel(settings, 0, reach_llm(settings, threads))


def _possible_stages(settings: Settings) -> list[str]:
    """Stages that a legend names: those that there always are, the cache and the LLM's absence."""
    tiers = ["cache"] if settings.cache_mode != "off" else []
    unreached = ["unresolved"] if settings.llm_address else []
    return ["local", *tiers, "llm_accepted", "llm_resampled", *unreached]
