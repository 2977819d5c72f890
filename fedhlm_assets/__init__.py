"""Data that FedHLM carries with it: the built-in model pair and the built-in corpus.

Installed with the package and left out of the Flower app bundle, which must stay small.
"""

from pathlib import Path

__all__ = ["asset_path"]

_ROOT = Path(__file__).resolve().parent


def asset_path(name: str = "") -> Path:
    """Give the path of a packaged asset.

    Parameters
    ----------
    name : str
        Path relative to this package, such as ``"corpus/world.jsonl"`` or ``"pair"``.
        Empty for the package folder itself.

    Returns
    -------
    Path
        Absolute path of an existing file or folder.

    Raises
    ------
    FileNotFoundError
        If there is no such asset.
    ValueError
        If ``name`` leads out of the package.
    """
    path = (_ROOT / name).resolve()
    if path != _ROOT and _ROOT not in path.parents:
        raise ValueError(f"asset {name!r} lies outside of {_ROOT}; give a path inside it")
    if not path.exists():
        raise FileNotFoundError(f"no asset {name!r} in {_ROOT}; reinstall fedhlm_assets")
    return path
