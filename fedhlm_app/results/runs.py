"""The folder of a run: where it is, what lies in it, and how it is written safely."""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Self, TypedDict

from fedhlm_app.results.summary import check_summary
from fedhlm_app.settings import Settings

RUN_FOLDER_VARIABLE = "FEDHLM_RUN_FOLDER"
"""Environment variable by which a launcher tells the ServerApp its folder."""

CONFIG, METRICS, TOKENS = "config.json", "metrics.jsonl", "tokens.parquet"
SUMMARY, PROGRESS, REPORT = "summary.json", "progress.json", "report.html"
FAILURE, CHECKPOINT = "failure.json", "checkpoint.json"

_VERSIONED = (
    "fedhlm", "flwr", "ray", "torch", "transformers", "tokenizers", "datasets", "numpy",
)  # fmt: skip


class Progress(TypedDict):
    """How far a run is: rounds done of rounds asked for, and tokens by stage so far."""

    round: int
    rounds: int
    counts: dict[str, int]


class RoundMetrics(TypedDict, total=False):
    """A line of `metrics.jsonl`. `round` (from 1) is always there; the rest where it applies."""

    round: int
    tokens: int
    resolution: dict[str, int]
    threshold: dict[str, Any]  # {"global": float, "clusters": {"0": float, ...}}
    bytes: dict[str, int]  # {"uplink": int, "downlink": int, "edge": int}
    loss: float | None
    certificate: float | None
    llm_agreement: float | None
    replies: int
    refused: dict[str, str]  # client -> why its reply was refused
    evaluation: dict[str, Any] | None  # held-out figures, in the rounds that evaluate
    seconds: float


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new one, never half of it."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        # mkstemp makes files that nobody else may read; a run folder is for showing.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages a result depends on."""
    found = {"python": platform.python_version()}
    for package in _VERSIONED:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            # Run from a source tree that was never installed, or an optional package.
            continue
    return found


def cores() -> int:
    """Return the processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Return what a time in a report has to be read with: system, processor, cores."""
    return {"system": platform.system(), "machine": platform.machine(), "cores": cores()}


@dataclass(frozen=True)
class RunFolder:
    """One run's folder. Every file in it is replaced whole, or grows by whole lines."""

    path: Path

    @classmethod
    def create(cls, settings: Settings, environ: Mapping[str, str] | None = None) -> Self:
        """Make the folder of a new run and write its `config.json`.

        The folder is `<run-dir>/<UTC time>-<name>`, the one that the launcher made and named in
        FEDHLM_RUN_FOLDER, or the one that `resume` names, in which nothing is changed: see
        `go_on`.

        Parameters
        ----------
        settings : Settings
            The run's settings, paths absolute.
        environ : Mapping[str, str] | None
            Environment; `os.environ` when None.
        """
        given = (os.environ if environ is None else environ).get(RUN_FOLDER_VARIABLE, "")
        if given or settings.resume:
            folder = cls(Path(given or settings.resume))
            folder.path.mkdir(parents=True, exist_ok=True)
        else:
            folder = cls(_new_folder(Path(settings.run_dir), settings.name))
        if not (folder.path / CONFIG).exists():
            folder._write_json(
                CONFIG,
                {
                    "started": _now(),
                    "settings": settings.to_run_config(),
                    "versions": versions(),
                    "machine": machine(),
                },
            )
        return folder

    @classmethod
    def existing(cls, path: Path) -> Self:
        """The folder of a run that there is; ValueError when it is none."""
        if not (path / CONFIG).is_file():
            raise ValueError(f"{path} is not a run folder: it has no {CONFIG}")
        return cls(path)

    def go_on(self, settings: Settings, last_round: int) -> None:
        """Take up a run again after its first `last_round` rounds, once every check has passed.

        `config.json` takes these settings, which the next resumption starts from, and lines of
        later rounds go, since they will be written again. Summary and report of a run that had
        ended stay until the longer run replaces them; `summary.json` says of how many rounds it is.
        """
        config = self.config()
        told = settings.to_run_config() | {"resume": ""}
        before = config["settings"]
        changed = {key: value for key, value in told.items() if before.get(key) != value}
        if changed:
            since = {key: before.get(key) for key in changed}
            config.setdefault("resumed", []).append({"at": _now(), "settings_before": since})
            self._write_json(CONFIG, config | {"settings": told})
        kept = [line for line in self.metrics() if line["round"] <= last_round]
        write_atomically(self.path / METRICS, "".join(json.dumps(line) + "\n" for line in kept))
        (self.path / FAILURE).unlink(missing_ok=True)

    def config(self) -> dict[str, Any]:
        """Return `config.json`: start, settings, versions, machine."""
        return self._read_json(CONFIG)

    def append_metrics(self, line: RoundMetrics | Mapping[str, Any]) -> None:
        """Add one round's line to `metrics.jsonl`; NaN and infinity become null."""
        if "round" not in line:
            raise ValueError("a line of metrics.jsonl needs 'round', the round's number from 1")
        text = json.dumps(_finite(dict(line)), allow_nan=False)
        # One write of one line: a killed run leaves at most its last line cut short.
        with (self.path / METRICS).open("a", encoding="utf-8") as handle:
            handle.write(text + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of `metrics.jsonl` in order; a last line cut short is left out."""
        path = self.path / METRICS
        if not path.exists():
            return []
        complete = path.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in complete if line]

    def write_progress(self, round_: int, rounds: int, counts: Mapping[str, int]) -> None:
        """Tell a watching launcher how far the run is."""
        self._write_json(PROGRESS, {"round": round_, "rounds": rounds, "counts": dict(counts)})

    def progress(self) -> Progress | None:
        """Return how far the run is, or None before its first round."""
        if not (self.path / PROGRESS).exists():
            return None
        found = self._read_json(PROGRESS)
        return {"round": found["round"], "rounds": found["rounds"], "counts": found["counts"]}

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`, refusing one that breaks the contract (`SummaryError`)."""
        check_summary(summary)
        self._write_json(SUMMARY, dict(summary))
        (self.path / FAILURE).unlink(missing_ok=True)

    def summary(self) -> dict[str, Any] | None:
        """Return `summary.json`, or None while (or if) the run has none."""
        return self._read_json(SUMMARY) if (self.path / SUMMARY).exists() else None

    def write_failure(self, error: str) -> None:
        """Say why a run ended before it had a summary of all its rounds."""
        self._write_json(FAILURE, {"at": _now(), "error": error})

    def failure(self) -> str:
        """Why the run failed; empty when it has not, or not yet."""
        source = FAILURE if (self.path / FAILURE).exists() else SUMMARY
        found = self._read_json(source) if (self.path / source).exists() else {}
        return str(found.get("error") or "")

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        write_atomically(self.path / name, json.dumps(value, indent=2, allow_nan=False) + "\n")

    def _read_json(self, name: str) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.path / name).read_text(encoding="utf-8"))
        return loaded


def runs_base() -> Path:
    """Folder that a relative `run-dir` starts from where Flower chooses the working folder.

    A ServerApp runs in the folder that its SuperLink was started in: for Flower's local one, which
    outlives the command, that is wherever the first `flwr run` was typed. The home folder's
    `fedhlm` is the same for all of them.
    """
    try:
        return Path.home() / "fedhlm"
    except RuntimeError:
        # A user without a home folder, as in some containers: the log names the folder.
        return Path.cwd()


def runs_in(directory: Path) -> list[RunFolder]:
    """Return the run folders of a directory, oldest first."""
    if not directory.is_dir():
        return []
    # Names begin with the time of their start, so their order is the order in time.
    return [RunFolder(config.parent) for config in sorted(directory.glob(f"*/{CONFIG}"))]


def latest_run(directory: Path) -> RunFolder | None:
    """Return the newest run folder of a directory, or None when there is none."""
    found = runs_in(directory)
    return found[-1] if found else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _new_folder(directory: Path, name: str) -> Path:
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    for number in itertools.count(1):
        # A second run within the same second gets a number.
        path = directory / (f"{stamp}-{name}" if number == 1 else f"{stamp}-{name}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise AssertionError("unreachable: counting never ends")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
