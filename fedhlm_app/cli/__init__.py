"""The `fedhlm` command. Importing it is cheap: each command imports what it needs when it runs."""

from fedhlm_app.cli.app import app, main

__all__ = ["app", "main"]
