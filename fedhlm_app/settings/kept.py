"""Settings that a command has written into a file, read by a later one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedhlm_app.settings.errors import SettingsError
from fedhlm_app.settings.model import Settings
from fedhlm_app.settings.sources import Scalar


def check_kept(kept: Mapping[str, Scalar], where: Path) -> None:
    """Refuse what this version cannot have written, naming the file in which it is.

    Parameters
    ----------
    kept : mapping
        Settings by kebab-case key, as a run folder or a trace keeps them.
    where : Path
        That file.

    Raises
    ------
    SettingsError
        In one line that says what does not fit.
    """
    try:
        Settings.from_sources(kept, {})
    except SettingsError as error:
        raise SettingsError(
            f"'{where}' is of another version of fedhlm: {'; '.join(str(error).splitlines())}; "
            "go on with the version that wrote it, or begin anew with this one"
        ) from error
