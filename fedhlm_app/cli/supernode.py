"""`fedhlm serve supernode`: Flower's SuperNode, whose model stays loaded between messages."""

from __future__ import annotations

import typer

from fedhlm_app.cli.error_log import ends_with
from fedhlm_app.cli.run import BAD_SETTINGS

FLOWERS_OWN = {"ignore_unknown_options": True, "allow_extra_args": True}


def supernode(words: typer.Context) -> None:
    """Run a Flower SuperNode that keeps model and app loaded for all messages of a run.

    Takes the options of `flower-supernode` (`flower-supernode --help`), but for those by which it
    and its ClientApp find each other:

    - `fedhlm serve supernode --superlink 10.0.0.5:8100 --root-certificates key/ca.pem
      --auth-supernode-private-key key/node.key --node-config 'partition-id=0 num-partitions=2'`

    Flower's own starts a process for each message, which takes seconds before its work begins.
    Exit status: 0 after a stop, 2 when an option is wrong, Flower's otherwise.
    """
    with ends_with(BAD_SETTINGS, ValueError):
        from fedhlm_app.launch.supernode import run_supernode

        run_supernode(words.args)
