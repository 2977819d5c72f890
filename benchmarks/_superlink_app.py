"""A ServerApp that asks some nodes once, and a ClientApp that is never started."""

from __future__ import annotations

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedhlm_app.settings import Settings

server = ServerApp()
client = ClientApp()


@server.main()  # type: ignore[untyped-decorator,unused-ignore]
def main(grid: Grid, context: Context) -> None:
    """Send a small message to each of the first nodes, and take the replies."""
    count = Settings.from_run_config(context.run_config).clients
    content = {"arrays": ArrayRecord([np.zeros(8)]), "config": ConfigRecord({"round": 1})}
    nodes = sorted(grid.get_node_ids())[:count]
    grid.send_and_receive([Message(RecordDict(content), node, "train") for node in nodes])
