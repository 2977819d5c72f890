"""Commands whose module is imported only when they are called."""

from __future__ import annotations

import importlib
from typing import Any

import click
import typer
from typer.core import TyperGroup


def command_app(**options: Any) -> typer.Typer:
    """A Typer app as all of this command are.

    Completion is the top level's affair, which completes subcommands too, and the parser suggests
    near names by itself: Typer would say them a second time.
    """
    ours: dict[str, Any] = {
        "add_completion": False,
        "suggest_commands": False,
        "pretty_exceptions_enable": False,
        "rich_markup_mode": "markdown",
        "context_settings": {"help_option_names": ["-h", "--help"]},
    }
    return typer.Typer(**(ours | options))


class LazyCommand(click.Command):
    """A command known by name and one line of help; the rest is loaded at its first use.

    Parameters
    ----------
    name : str
        Name on the command line.
    target : str
        `package.module:attribute` of a Typer app.
    short_help : str
        The line that `fedhlm --help` shows.
    """

    def __init__(self, name: str, target: str, short_help: str) -> None:
        super().__init__(name, help=short_help, short_help=short_help)
        self.target = target

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Load the command and let it parse its own arguments."""
        module, _, attribute = self.target.partition(":")
        loaded = typer.main.get_command(getattr(importlib.import_module(module), attribute))
        return loaded.make_context(info_name, args, parent, **extra)


class LazyGroup(TyperGroup):
    """A group that also has the commands of `LAZY`."""

    LAZY: dict[str, tuple[str, str]] = {}  # noqa: RUF012  (filled by the subclass)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names, the group's own first."""
        return [*super().list_commands(ctx), *self.LAZY]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by name; a lazy one without importing it."""
        if cmd_name in self.LAZY:
            target, short_help = self.LAZY[cmd_name]
            return LazyCommand(cmd_name, target, short_help)
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; where there is none, let the lazy ones be suggested too."""
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:
            name, known = error.command_name, self.list_commands(ctx)
            raise click.exceptions.NoSuchCommand(name, possibilities=known, ctx=ctx) from None
