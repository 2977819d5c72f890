"""A ServerApp that asks some nodes in each round, and a ClientApp that only answers."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedhlm_app.server.prompt_grid import PromptGrid
from fedhlm_app.settings import Settings

server = ServerApp()
client = ClientApp()

SECONDS = "seconds.json"
"""Where the ServerApp writes what each round took, in the folder of the SuperLink."""


@client.train()  # type: ignore[untyped-decorator,unused-ignore]
def train(message: Message, context: Context) -> Message:
    """Reply with what came."""
    return Message(message.content, reply_to=message)


@server.main()  # type: ignore[untyped-decorator,unused-ignore]
def main(grid: Grid, context: Context) -> None:
    """Send a small message to each of the first nodes, and take the replies."""
    settings = Settings.from_run_config(context.run_config)
    content = {"arrays": ArrayRecord([np.zeros(8)]), "config": ConfigRecord({"round": 1})}
    while len(nodes := sorted(grid.get_node_ids())) < settings.clients:
        time.sleep(0.1)
    seconds = []
    for _ in range(settings.rounds):
        begun = time.perf_counter()
        asked = [Message(RecordDict(content), n, "train") for n in nodes[: settings.clients]]
        replies = PromptGrid(grid).send_and_receive(asked)
        if any(reply.has_error() for reply in replies):
            raise RuntimeError("a node has failed")
        seconds.append(time.perf_counter() - begun)
    Path(SECONDS).write_text(json.dumps(seconds))
