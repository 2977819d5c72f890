"""Names of devices and number formats in settings, as torch knows them."""

from __future__ import annotations

import torch

from fedhlm_app.settings.errors import SettingsError


def torch_dtype(name: str) -> torch.dtype:
    """``float32`` and the like.

    Raises
    ------
    ValueError
        When torch has no such floating-point format.
    """
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype = {name!r}: allowed are float32, float64, float16 and bfloat16")
    return found


def torch_device(name: str, setting: str = "device") -> str:
    """A device name, ``auto`` resolved to the best one there is.

    Parameters
    ----------
    name : str
        ``cpu``, ``cuda``, ``cuda:N``, ``mps`` or ``auto``.
    setting : str
        Named in the message.

    Raises
    ------
    SettingsError
        When this machine has no such device.
    """
    if name == "cpu":
        return name
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    metal = torch.backends.mps.is_available()
    if name == "auto":
        return "cuda" if count else "mps" if metal else "cpu"
    kind, _, index = name.partition(":")
    if metal if kind == "mps" else int(index or 0) < count:
        return name
    here = ["cpu", "auto", *(f"cuda:{i}" for i in range(count)), *(["mps"] if metal else [])]
    raise SettingsError(
        f"setting {setting!r} = {name!r}: PyTorch finds no such device here; allowed on this "
        f"machine: {', '.join(here)}"
    )
