"""`fedhlm run`: settings checked, run launched, progress drawn, result shown."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from fedhlm_app.cli.error_log import keep_trace, say
from fedhlm_app.cli.interrupting import INTERRUPTED, interruptible
from fedhlm_app.cli.progress import watch
from fedhlm_app.cli.result import show_result
from fedhlm_app.launch import Interrupted, LaunchError, RunResult, launch
from fedhlm_app.presets import DEFAULT, PLAIN
from fedhlm_app.results.at_work import is_at_work
from fedhlm_app.results.runs import CHECKPOINT, RunFolder
from fedhlm_app.server import resuming
from fedhlm_app.settings import Settings, SettingsError, advice
from fedhlm_app.settings.words import in_short

COMPLETED, FAILED, BAD_SETTINGS = 0, 1, 2


def parse_overrides(pairs: list[str]) -> dict[str, str]:
    """Return `key=value` words as a mapping.

    Raises
    ------
    SettingsError
        A word without `=` or a key, or a key given twice with different values.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise SettingsError(f"--set {pair!r}: must be key=value, for example --set rounds=5")
        if found.get(key, value) != value:
            raise SettingsError(f"--set {key}: given as both {found[key]!r} and {value!r}")
        found[key] = value
    return found


def collect(
    options: Mapping[str, object],
    pairs: list[str],
    base: Mapping[str, bool | int | float | str] | None = None,
    preset: str = PLAIN,
) -> Settings:
    """Build the settings of a command line; raises `SettingsError` naming what is wrong.

    Parameters
    ----------
    options : mapping
        Settings that have an option of their own; None where it was not given.
    pairs : list of str
        Words of `--set`.
    base : mapping, optional
        Settings of a run, which hold unless these say otherwise.
    preset : str
        What to start from where none is named.
    """
    given: dict[str, bool | int | float | str] = dict(parse_overrides(pairs))
    for key, value in options.items():
        if value is None:
            continue
        if key in given and str(value) != given[key]:
            raise SettingsError(f"setting {key!r} is given twice: {value!r} and {given[key]!r}")
        assert isinstance(value, int | float | str)
        given[key] = value
    settings = Settings.from_sources(dict(base or {}) | _resumed(given) | given, preset=preset)
    settings.check_paths()
    return settings


def _resumed(given: Mapping[str, bool | int | float | str]) -> dict[str, bool | int | float | str]:
    """Settings of the run that `resume` names: it goes on as it was, unless told otherwise."""
    resume = str(given.get("resume", ""))
    folder = RunFolder(Path(resume).expanduser())
    if not resume or not folder.path.is_dir():
        return {}
    if is_at_work(folder.path):
        raise SettingsError(
            f"setting 'resume' = '{folder.path}': a run is at work there; wait until it has ended"
        )
    before = resuming.settings_of(folder)
    if given.get("name", before.get("name")) != before.get("name"):
        raise SettingsError(
            f"setting 'name' = {given['name']!r}: a run that is resumed stays in its folder, "
            f"'{folder.path}'; leave it out"
        )
    return before


def run_job(options: Mapping[str, object], pairs: list[str], *, as_json: bool) -> int:
    """Run a job and return the exit status of the command.

    Parameters
    ----------
    options : Mapping[str, object]
        Settings that have an option of their own; None where it was not given.
    pairs : list[str]
        Words of `--set`.
    as_json : bool
        Print one JSON object on standard output; everything else goes to standard error.
    """
    errors = Console(stderr=True, highlight=False)
    try:
        with interruptible(errors):
            return _run_job(errors, options, pairs, as_json=as_json)
    except Interrupted as stop:
        say(errors, f"every process of the run has been ended; {_go_on(stop.folder)}")
        return INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED


def _run_job(
    errors: Console, options: Mapping[str, object], pairs: list[str], *, as_json: bool
) -> int:
    try:
        settings = collect(options, pairs, preset=DEFAULT)
        if (result := _finished(settings)) is None:
            _check_before_start(settings)
            _announce(errors, settings)
            warn(errors, settings)
    except (ValueError, OSError) as error:
        # OSError: a hub name that is not in the cache and cannot be fetched.
        say(errors, str(error))
        keep_trace(error)
        return BAD_SETTINGS
    try:
        if result is None:
            with watch(errors, settings) as on_progress:
                result = launch(settings, on_progress=on_progress)
    except SettingsError as error:  # the Ray cluster of the environment
        say(errors, str(error))
        return BAD_SETTINGS
    except (LaunchError, OSError) as error:
        say(errors, str(error))
        return FAILED
    if as_json:
        print(json.dumps(_as_json(result), indent=2))
    if not as_json and result.summary is not None:
        show_result(Console(), result.summary, result.folder.path)
    if not result.ok:
        _explain(errors, result)
        return FAILED
    return COMPLETED


def _go_on(folder: RunFolder) -> str:
    """How to go on with a run that was interrupted, if it can be."""
    if not (folder.path / CHECKPOINT).is_file():
        return f"no checkpoint was saved, so there is nothing to go on from in {folder.path}"
    return f"go on with: fedhlm run --resume {_shown(folder)}"


def _shown(folder: RunFolder) -> str:
    """A run's folder as a word of a command typed here."""
    path = folder.path
    return shlex.quote(
        str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    )


def _finished(settings: Settings) -> RunResult | None:
    """The result of a resumed run that has no round left; None where there is one to run."""
    if not settings.resume:
        return None
    summary = resuming.finished(settings)
    if summary is None:
        return None
    folder, error = RunFolder(Path(settings.resume)), summary.get("error", "")
    status = "finished:failed" if error else "finished:completed"
    return RunResult(folder, status, error, (), summary, summary["seconds"]["total"])


def _check_before_start(settings: Settings) -> None:
    """Refuse data and models that cannot work together, before Flower and Ray are started."""
    from fedhlm_app.models.trying import try_models
    from fedhlm_app.server import preflight

    preflight.check(settings)
    try_models(settings)


def _announce(console: Console, settings: Settings) -> None:
    """Say with which preset a run starts, and what is not as that has it."""
    words = f"preset {settings.preset}"
    if changed := in_short(settings.changed()):
        words += f"; changed: {changed}"
    if followed := in_short(settings.followed()):
        words += f"; from this follows {followed}"
    console.print(words, style="dim", markup=False, soft_wrap=True)


def warn(console: Console, settings: Settings) -> None:
    """Say which choices make no difference."""
    for line in advice(settings):
        console.print(f"fedhlm: {line}", style="yellow", markup=False, soft_wrap=True)


def _explain(console: Console, result: RunResult) -> None:
    from fedhlm_app.results.report import write_report

    say(console, f"the run failed ({result.status}): {result.details or 'see its log'}")
    for line in result.errors:
        if line not in result.details:
            console.print(f"  {line}", markup=False, soft_wrap=True)
    folder = result.folder
    told = {"log": str(folder.path / "flower.log")}
    try:
        if not folder.failure():
            folder.write_failure(result.details or "; ".join(result.errors) or "see its log")
        told["report"] = str(write_report(folder))
    except OSError as error:
        told["no report"] = f"{error}; once there is room: fedhlm report {_shown(folder)}"
    for what, where in told.items():
        console.print(f"{what}: {where}", markup=False, soft_wrap=True)
    if result.summary is None and (folder.path / CHECKPOINT).is_file():
        console.print(_go_on(folder), markup=False, soft_wrap=True)


def _as_json(result: RunResult) -> dict[str, object]:
    return {
        "run": str(result.folder.path),
        "status": result.status,
        "seconds": round(result.seconds, 2),
        "summary": result.summary,
        "errors": list(result.errors),
    }
