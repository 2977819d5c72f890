"""The Flower app that is handed to `flwr run`: a pyproject.toml, and the code by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from fedhlm_app import __file__ as package_file
from fedhlm_app.settings import Settings


class Components(NamedTuple):
    """Where Flower finds the two apps, as `package.module:attribute`."""

    serverapp: str = "fedhlm_app.server_app:app"
    clientapp: str = "fedhlm_app.client_app:app"


_PYPROJECT = """\
[project]
name = "fedhlm"
version = "0.0.0"
description = "FedHLM, as installed"
license = {{ text = "Apache-2.0" }}

[tool.flwr.app]
publisher = "fedhlm"
# The code is imported from where `fedhlm` itself runs, so ServerApp and ClientApps are one version.
fab-include = ["README.md"]

[tool.flwr.app.components]
serverapp = {serverapp}
clientapp = {clientapp}

[tool.flwr.app.config]
{config}"""


def code_root() -> Path:
    """Return the folder that holds the running `fedhlm_app`: a checkout or site-packages."""
    return Path(package_file).resolve().parent.parent


def write_app(
    folder: Path,
    settings: Settings,
    components: Components = Components(),  # noqa: B008
) -> Path:
    """Write the app's folder and return it.

    It holds no code: in a source checkout and in an installed wheel alike, both apps are imported
    from the environment of the `fedhlm` command.

    Parameters
    ----------
    folder : Path
        Folder to make; Flower wants it named with letters and digits.
    settings : Settings
        Of the run: the app's run-config.
    components : Components
        The apps to run.
    """
    folder.mkdir(parents=True)
    text = _PYPROJECT.format(
        serverapp=json.dumps(components.serverapp),
        clientapp=json.dumps(components.clientapp),
        # A JSON value is a TOML value.
        config="".join(f"{k} = {json.dumps(v)}\n" for k, v in settings.handed_on().items()),
    )
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text("FedHLM, run from the installed packages.\n")
    return folder
