"""Trying models that are not built in before a run starts: each is loaded once, and remembered.

What is tried, and against what, is `hlm.reading.agreement`. The model is loaded in a process of
its own, so that its memory is free again when the run begins; the verdict is kept in a file, and
is good for later runs with the same model, versions and settings.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from logging import getLogger
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from fedhlm_app.models.context_length import longest_context
from fedhlm_app.models.gguf import unpacked
from fedhlm_app.models.sources import BUILTIN, PairError, cache_folder
from fedhlm_app.results.runs import write_atomically
from fedhlm_app.settings import Settings
from fedhlm_app.settings.ray_cluster import joined

logger = getLogger(__name__)


def try_models(settings: Settings, *, simulated: bool = True) -> None:
    """Refuse a model of this machine that no way of reading is right for.

    The built-in ones are known to be good. Takes as long as the models take to load, the first
    time.

    Parameters
    ----------
    settings : Settings
        Of the run, checked (`fedhlm_app.server.preflight`).
    simulated : bool
        The devices are processes of this machine.

    Raises
    ------
    PairError
        Naming the setting and what is wrong with the model.
    """
    wanted = []
    if simulated and settings.slm != BUILTIN:
        wanted.append(("slm", settings.slm, settings.dtype, settings.device))
    if settings.loads_llm and settings.llm != BUILTIN:
        wanted.append(("llm", settings.llm, settings.llm_dtype, settings.llm_device))
    for role, name, dtype, device in wanted:
        # The nodes of a cluster have other devices than this machine.
        device = "auto" if joined() else device
        longest = longest_context(settings) if role == "slm" else settings.llm_context
        refusal = _remembered(role, name, dtype, device, longest)
        if refusal:
            raise PairError(f"setting {role!r} = {name!r}: {refusal}; docs/models.md says which do")


def _remembered(role: str, name: str, dtype: str, device: str, longest: int) -> str:
    """Why a model is refused, empty if it is not; from an earlier trial if there was one."""
    key = [role, _identity(name), dtype, device, longest]
    key += [version(package) for package in ("fedhlm", "torch", "transformers")]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    file = cache_folder() / f"{digest}.json"
    if file.is_file():
        found: str = json.loads(file.read_text("utf-8"))["refused"]
        return found
    refusal = _tried_apart(role, name, dtype, device, longest)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps({"model": name, "refused": refusal}))
    except OSError as error:
        logger.info("the verdict on model %s is not kept: %s", name, error)
    return refusal


def _identity(name: str) -> Any:
    """What tells one state of a model from another."""
    folder = Path(unpacked(name, "model"))
    if folder.is_dir():
        files = sorted(file for file in folder.iterdir() if file.is_file())
        stats = [(file.name, file.stat()) for file in files]
        return [str(folder.resolve()), *((n, s.st_size, s.st_mtime_ns) for n, s in stats)]
    from transformers import AutoConfig

    return [name, getattr(AutoConfig.from_pretrained(name), "_commit_hash", None)]


def _tried_apart(role: str, name: str, dtype: str, device: str, longest: int) -> str:
    """`_refusal` in a process of its own."""
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(_refusal, role, name, dtype, device, longest).result()
    except BrokenProcessPool:
        raise PairError(
            f"setting {role!r} = {name!r}: the process that loaded it ended; too little memory?"
        ) from None


def _refusal(role: str, name: str, dtype: str, device: str, longest: int) -> str:
    """Load a model and try it; why it is refused, or empty."""
    from fedhlm_app.models.load import load_llm, load_slm
    from fedhlm_app.models.torch_names import torch_device, torch_dtype
    from hlm.reading.agreement import ModelRefusedError

    setting, load = ("device", load_slm) if role == "slm" else ("llm-device", load_llm)
    model = load(name, torch_dtype(dtype), torch_device(device, setting))
    try:
        if role == "slm":
            from clients.decoding.ways import best_ways

            best_ways(model, longest)
        else:
            from servers.engine.engine import context_limit
            from servers.engine.ways import best_way

            best_way(model, min(longest, context_limit(model)))
    except ModelRefusedError as error:
        return str(error)
    return ""
