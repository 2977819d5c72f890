"""``fedhlm pair``: train, carve, write chats, distil, evaluate, pack and export a model pair."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from fedhlm_app.cli.completing import file_option, folder_option, model_option
from fedhlm_app.cli.interrupting import INTERRUPTED
from fedhlm_app.cli.lazy import command_app

if TYPE_CHECKING:
    from fedhlm_app.pair.recipe import PairTraining

_BAD_SETTINGS = 2


class _Commands(TyperGroup):
    """Commands that end in one line and exit status 2 where data, models or options are wrong."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, OSError) as error:
            from fedhlm_app.cli.error_log import keep_trace

            keep_trace(error)
            typer.secho(f"fedhlm: {' '.join(str(error).split())}", fg="red", err=True)
            raise typer.Exit(_BAD_SETTINGS) from None


pair_app = command_app(
    cls=_Commands,
    help="Train, carve, write chats, distil, evaluate, pack and export a model pair. Exit status: "
    "2 when data, a model or an option cannot be used.",
    no_args_is_help=True,
)

_Dataset = Annotated[str, typer.Option(help="builtin, a file, a folder, or a hub name.")]
_Out = Annotated[Path, folder_option("Folder to write; an unfinished one is resumed.")]
_Text = Annotated[
    str, typer.Option("--text-columns", help="Text columns, comma separated; found by default.")
]
_Label = Annotated[str, typer.Option(help="Label column; found by default.")]
_Seed = Annotated[int, typer.Option(min=0, help="Of weights and order of articles.")]
_Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves PyTorch's choice.")]
_Steps = Annotated[int, typer.Option(min=0, help="Steps of the distillation.")]
_Weight = Annotated[float, typer.Option(min=0.0, max=1.0, help="Weight of KL to the LLM.")]
_Every = Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")]
_Cpu = Annotated[bool, typer.Option("--cpu", help="Leave a GPU alone.")]
_Single = Annotated[
    bool,
    typer.Option("--no-bfloat16", help="In float32: faster where the processor lacks bfloat16."),
]
_Parts = Annotated[
    int, typer.Option(min=1, help="Parts that a step's batch is cut into: less memory.")
]
_Batch = Annotated[int, typer.Option(min=1, help="Articles a step; fewer need less memory.")]
_Rows = Annotated[int, typer.Option("--rows", min=0, help="Rows to measure on; 0: all.")]
_Model = Annotated[str, model_option()]
_Tracker = Annotated[str, typer.Option(help="Tracker of Transformers, such as tensorboard.")]


@pair_app.command()
def train(
    ctx: typer.Context,
    dataset: _Dataset,
    out: _Out,
    llm_steps: Annotated[int, typer.Option(min=0, help="Steps of the LLM.")] = 5933,
    slm_steps: Annotated[int, typer.Option(min=0, help="Steps of the SLM.")] = 2115,
    distil_steps: _Steps = 2400,
    distil_weight: _Weight = 0.8,
    text_column: _Text = "",
    label_column: _Label = "",
    seed: _Seed = 1,
    threads: _Threads = 0,
    checkpoint_every: _Every = 200,
    cpu: _Cpu = False,
    no_bfloat16: _Single = False,
    accumulate: _Parts = 1,
    report_to: _Tracker = "",
) -> None:
    """Train tokenizer, LLM and SLM, and distil the LLM into the SLM; resumes by itself."""
    from fedhlm_app.pair.pipeline import train_pair

    settings = _settings(ctx)
    settings = dataclasses.replace(
        settings,
        llm=dataclasses.replace(settings.llm, steps=llm_steps),
        slm=dataclasses.replace(settings.slm, steps=slm_steps),
        distil=dataclasses.replace(settings.distil, steps=distil_steps, distillation=distil_weight),
    )
    with _resumable(out):
        _print_report(train_pair(settings).folder)


@pair_app.command()
def carve(
    llm: _Model,
    out: Annotated[Path, folder_option("Folder to write.")],
    layers: Annotated[int, typer.Option(help="Layers to keep.")] = 4,
    keep: Annotated[
        str, typer.Option(help="Which: first, ends, even, or numbers such as 0,1,2,29.")
    ] = "first",
    dataset: Annotated[
        str, typer.Option(help="Texts to fit it on: builtin, a file, a folder, or a hub name.")
    ] = "builtin",
    tokens: Annotated[
        int, typer.Option(min=0, help="Tokens of them; 0: only cut, nothing is fitted.")
    ] = 30_000,
    text_column: _Text = "",
) -> None:
    """Make an SLM of some of an LLM's layers, with its tokenizer, and fit its head in minutes.

    - `fedhlm pair carve --llm smollm2 --layers 4 --out slm`

    - `fedhlm pair carve --llm smollm2 --layers 4 --dataset news.csv --out slm`

    `distil` teaches it further.
    """
    from fedhlm_app.models.carving import carve as carved

    model, kept = carved(llm, keep, layers, out, dataset, tokens, text_column)
    typer.echo(f"{out}: layers {', '.join(map(str, kept))}; {model.num_parameters():,} weights")


@pair_app.command()
def write(
    llm: _Model,
    out: Annotated[Path, file_option("New file to write, .jsonl.")],
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of answers, at least.")] = 600_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 1,
    no_bfloat16: _Single = False,
) -> None:
    """Let an LLM that was made for chats write some, prompts and answers, to teach an SLM with.

    - `fedhlm pair write --llm smollm2 --tokens 600000 --out chats.jsonl`

    - `fedhlm pair carve --llm smollm2 --layers 6 --dataset chats.jsonl --out six`

    - `fedhlm pair distil --slm six --llm smollm2 --dataset chats.jsonl --out taught`

    Each line has its `messages`. A file of chats of your own, of the same form, takes its place.
    """
    from rich.console import Console

    from fedhlm_app.cli.progress import steps
    from fedhlm_app.pair.writing import write_chats

    with steps(Console(stderr=True, highlight=False)) as listen:
        try:
            chats, written = write_chats(
                llm,
                tokens,
                out,
                seed,
                lambda done, of: listen("tokens written", done, of),
                bfloat16=not no_bfloat16,
            )
        except KeyboardInterrupt:
            kept = f"{out} has what was written" if out.exists() else "nothing was written yet"
            typer.secho(f"fedhlm: stopped; {kept}", fg="red", err=True)
            raise typer.Exit(INTERRUPTED) from None
    typer.echo(f"{out}: {chats:,} chats, {written:,} tokens of answers")


@pair_app.command()
def export(
    to: Annotated[Path, folder_option("Folder to write.")],
    slm: _Model = "builtin",
    int8: Annotated[bool, typer.Option("--int8", help="Weights in 8 bits, of ONNX.")] = False,
) -> None:
    """Write an SLM and its tokenizer for devices that cannot hold PyTorch.

    - `fedhlm pair export --to device`

    - `fedhlm pair export --slm smollm2 --to device`

    - `fedhlm serve device --slm device --llm-address 10.0.0.5:8471`

    It runs in ONNX Runtime; a GGUF file stays as it is, for llama.cpp.
    """
    from fedhlm_app.pair.export import export as exported

    typer.echo(f"{to}: {exported(slm, to, int8):,} bytes of model")


@pair_app.command()
def distil(
    ctx: typer.Context,
    slm: _Model,
    llm: _Model,
    dataset: _Dataset,
    out: _Out,
    steps: _Steps = 2400,
    tokens: Annotated[int, typer.Option(min=0, help="In place of --steps; 0: as those say.")] = 0,
    batch: _Batch = 64,
    warmup: Annotated[int, typer.Option(min=0, help="Steps in which the rate rises.")] = 100,
    validation_rows: _Rows = 0,
    peak_rate: Annotated[float, typer.Option(min=0.0, help="Peak learning rate.")] = 3e-3,
    weight: _Weight = 0.8,
    text_column: _Text = "",
    label_column: _Label = "",
    seed: _Seed = 1,
    threads: _Threads = 0,
    checkpoint_every: _Every = 200,
    cpu: _Cpu = False,
    no_bfloat16: _Single = False,
    accumulate: _Parts = 1,
    report_to: _Tracker = "",
) -> None:
    """Go on training an SLM towards an LLM; resumes by itself.

    - `fedhlm pair distil --slm slm --llm smollm2 --dataset news.csv --tokens 500000 --out d`

    Steps and losses are on standard error, figures of the end on standard output. --out has the SLM
    in `slm`, its card and `report.json`.
    """
    from fedhlm_app.pair.pipeline import distil_pair
    from fedhlm_app.pair.recipe import StageRecipe

    settings = _settings(ctx)
    recipe = StageRecipe(steps, peak_rate, warmup, batch=batch, distillation=weight)
    settings = dataclasses.replace(settings, distil=recipe)
    with _resumable(out):
        _print_report(distil_pair(slm, llm, settings, tokens).folder)


@pair_app.command()
def evaluate(
    dataset: _Dataset,
    slm: _Model = "builtin",
    llm: _Model = "builtin",
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "validation",
    text_column: _Text = "",
    label_column: _Label = "",
    rows: _Rows = 0,
    threads: _Threads = 0,
) -> None:
    """Print a pair's figures on held-out articles as JSON."""
    import torch

    from fedhlm_app.data.items import load_items
    from fedhlm_app.models.load import load_pair
    from fedhlm_app.pair.figures import evaluate_pair, rounded

    if threads:
        torch.set_num_threads(threads)
    items = load_items(
        dataset,
        split,  # type: ignore[arg-type]
        text_column=text_column,
        label_column=label_column,
        labelled=False,
    )
    pair = load_pair(slm, llm)
    figures = evaluate_pair(pair.slm, pair.llm, pair.tokenizer, items, rows=rows)
    typer.echo(json.dumps(rounded(figures), indent=2))


@pair_app.command()
def pack(
    source: Annotated[Path, typer.Option(help="Folder of a saved model.")],
    out: Annotated[Path, folder_option("Folder to write.")],
    group_size: Annotated[
        int, typer.Option(min=0, help="Weights that share a scale; 0 keeps fp16.")
    ] = 24,
    pack_embedding: Annotated[
        bool, typer.Option("--pack-embedding", help="Store the embedding in 8 bits too.")
    ] = False,
    no_tokenizer: Annotated[
        bool, typer.Option("--no-tokenizer", help="Leave the tokenizer's files out.")
    ] = False,
) -> None:
    """Store a model's matrices as 8-bit rows with fp16 scales."""
    from fedhlm_app.models.packing import pack_model

    keep = ("model.embed_tokens.weight",) if not pack_embedding else ()
    size = pack_model(source, out, group_size, keep, not no_tokenizer)
    typer.echo(f"{out}: {size:,} bytes of weights")


@contextmanager
def _resumable(out: Path) -> Iterator[None]:
    """Say how to go on after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        there = any(out.glob("checkpoints/*/checkpoint-*"))
        after = "goes on from the last checkpoint" if there else "begins anew: no checkpoint yet"
        typer.secho(f"\nfedhlm: stopped; the same command {after}", fg="red", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _settings(ctx: typer.Context) -> PairTraining:
    """Settings of a training, of those options of the command that are named like them."""
    from fedhlm_app.pair.recipe import PairTraining

    # Options that name models are none of the fields of that name, which are recipes.
    names = {field.name for field in dataclasses.fields(PairTraining)} - {"slm", "llm"}
    given = {name: value for name, value in ctx.params.items() if name in names}
    given["bfloat16"] = not ctx.params["no_bfloat16"]
    return PairTraining(**given | {"out": str(given["out"])})


def _print_report(folder: Path) -> None:
    """Print the figures that a training wrote."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    typer.echo(json.dumps(report["figures"], indent=2))
