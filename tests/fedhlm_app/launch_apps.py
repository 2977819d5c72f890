"""A ServerApp and a ClientApp that compute nothing; the run's name says how it is to end."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fedhlm_app.results.runs import RunFolder
from fedhlm_app.settings import Settings

server = ServerApp()
client = ClientApp()


@client.train()  # type: ignore[untyped-decorator,unused-ignore]
def train(message: Message, context: Context) -> Message:
    """Reply with the arrays that came."""
    content = RecordDict(
        {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})}
    )
    return Message(content, reply_to=message)


@server.main()  # type: ignore[untyped-decorator,unused-ignore]
def main(grid: Grid, context: Context) -> None:
    """Run the rounds, then end as the run's name says: well, raise, or hang."""
    settings = Settings.from_run_config(context.run_config)
    folder = RunFolder.create(settings)
    if settings.name == "raise":
        raise RuntimeError("deliberate failure 1234")
    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=settings.clients)
    strategy.start(grid=grid, initial_arrays=ArrayRecord([np.zeros(1)]), num_rounds=settings.rounds)
    folder.write_progress(settings.rounds, settings.rounds, {"local": settings.clients})
    while settings.name == "hang":
        time.sleep(0.1)
    folder.write_summary(summary(settings))


def summary(settings: Settings) -> dict[str, Any]:
    """Return a summary that keeps the contract."""
    resolution = dict.fromkeys(
        ("cache", "peer", "edge", "llm_accepted", "llm_resampled", "unresolved"), 0
    )
    return {
        "tokens": settings.clients,
        "resolution": {"local": settings.clients, **resolution},
        "trr": 1.0,
        "llm_agreement": 0.5,
        "accuracy": {"token": None, "label": None},
        "certificate": 0.1,
        "bytes": {"uplink": 10, "downlink": 20, "edge": 0},
        "threshold": {"global": 0.5, "clusters": {"0": 0.5}, "clients": {}},
        "rounds": settings.rounds,
        "clients": settings.clients,
        "clusters": settings.clusters,
        "seconds": {"total": 1.0, "slm": 0.1, "llm": 0.1, "flower": 0.1},
        "settings": settings.to_run_config(),
        "versions": {},
    }
