"""The steps as kfp components, and the pipeline of them; only imported where kfp is installed."""

# No postponed annotations: kfp reads them as objects.
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from kfp import compiler, components, dsl, local
from kfp.dsl import Artifact, Dataset, Input, Output

from fedhlm_app.pipeline import steps
from fedhlm_app.settings import Settings

# kfp takes the text of these functions along and runs it alone, so each imports what it needs.


def start(settings: str, rounds: int, state: Output[Artifact], memory: Output[Artifact]) -> None:
    """Form clusters, and write the first threshold."""
    from fedhlm_app.pipeline import steps

    steps.start(settings, rounds, state.path, memory.path)


def slm_inference(
    settings: str,
    number: int,
    state: Input[Artifact],
    memory: Input[Artifact],
    drafts: Output[Dataset],
    memory_after: Output[Artifact],
) -> None:
    """Draft with the small model, at each client's learned threshold, or generate texts."""
    from fedhlm_app.pipeline import steps

    steps.slm_inference(settings, number, state.path, memory.path, drafts.path, memory_after.path)


def routing_decision(settings: str, drafts: Input[Dataset], routed: Output[Dataset]) -> None:
    """Keep or escalate."""
    from fedhlm_app.pipeline import steps

    steps.routing_decision(settings, drafts.path, routed.path)


def llm_fallback(settings: str, routed: Input[Dataset], decided: Output[Dataset]) -> None:
    """Have the large model decide what was escalated."""
    from fedhlm_app.pipeline import steps

    steps.llm_fallback(settings, routed.path, decided.path)


def result_validator(settings: str, decided: Input[Dataset], validated: Output[Dataset]) -> None:
    """Check the result, and gather what thresholds are learned from."""
    from fedhlm_app.pipeline import steps

    steps.result_validator(settings, decided.path, validated.path)


def aggregator(
    settings: str,
    number: int,
    state: Input[Artifact],
    validated: Input[Dataset],
    after: Output[Artifact],
) -> None:
    """Learn thresholds and average them, in clusters and over clusters."""
    from fedhlm_app.pipeline import steps

    steps.aggregator(settings, number, state.path, validated.path, after.path)


def pipeline(settings: Settings, image: str) -> Any:
    """The pipeline of a run, whose settings may be replaced when it is submitted.

    Parameters
    ----------
    settings : Settings
        `rounds` is the pipeline's own, the others are the default of its parameter.
    image : str
        Container image that has this package and kfp.
    """
    made = (start, slm_inference, routing_decision, llm_fallback, result_validator, aggregator)
    component: dict[str, Any] = {
        one.__name__: dsl.component(one, base_image=image, install_kfp_package=False)
        for one in made
    }
    rounds = settings.rounds
    told = json.dumps({"preset": settings.preset, **settings.changed()})

    def fedhlm(settings: str = told) -> Artifact:
        begun = component["start"](settings=settings, rounds=rounds).outputs
        state, memory = begun["state"], begun["memory"]
        for number in range(1, rounds + 1):
            drafted = component["slm_inference"](
                settings=settings, number=number, state=state, memory=memory
            ).outputs
            found, memory = drafted["drafts"], drafted["memory_after"]
            for step in ("routing_decision", "llm_fallback", "result_validator"):
                before = dict.fromkeys(component[step].component_spec.inputs, found)
                found = component[step](**{**before, "settings": settings}).output
            state = component["aggregator"](
                settings=settings, number=number, state=state, validated=found
            ).output
        return state

    return dsl.pipeline(fedhlm, name="fedhlm", description=f"FedHLM, {rounds} rounds")


def write(settings: Settings, image: str, path: Path) -> None:
    """Compile the pipeline to a YAML file, and read it back as kfp does."""
    partial = path.with_name(f".{path.stem}.partial.yaml")
    compiler.Compiler().compile(pipeline(settings, image), str(partial))
    components.load_component_from_file(str(partial))
    partial.replace(path)


def run(settings: Settings, folder: Path) -> list[steps.Line]:
    """Run the pipeline here, each step a process of this Python; figures of all rounds.

    Raises
    ------
    RuntimeError
        Where a step failed.
    """
    runner = local.SubprocessRunner(use_venv=False)
    local.init(runner=runner, pipeline_root=str(folder))
    made = pipeline(settings, "python")
    # It prints what its steps say, and standard output is for the result.
    with redirect_stdout(sys.stderr):
        task = made()
    return steps.result(task.output.path)
