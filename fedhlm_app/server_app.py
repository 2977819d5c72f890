"""The Flower ServerApp: one run from its settings to its folder."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedhlm_app import preflight
from fedhlm_app.edge import EdgeHost
from fedhlm_app.federation import Federation
from fedhlm_app.links import llm_actor_name
from fedhlm_app.runs import RunFolder
from fedhlm_app.serving import LanguageModelHost, wait_for_ray
from fedhlm_app.settings import Settings

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Check everything, start the LLM, run the rounds, write the run folder."""
    settings = Settings.from_run_config(context.run_config)
    items = preflight.check(settings)
    folder = RunFolder.create(settings)
    host = None
    if not settings.llm_address:
        host = LanguageModelHost(settings, llm_actor_name(context.run_id))
        host.start()
    edges = EdgeHost(settings, context.run_id) if settings.peer_mode != "off" else None
    if edges is not None:
        wait_for_ray()
    try:
        Federation(settings, items, folder, host, edges).run(grid)
    finally:
        if edges is not None:
            edges.stop()
        if host is not None:
            host.stop()
