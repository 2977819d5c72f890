"""The Flower ServerApp: one run from its settings to its folder.

Actors of the LLM and of edge servers are imported where a run starts them: they are part of the
installed package and not of the bundle that Flower sends around, and a run with `llm-address`
needs neither.
"""

from __future__ import annotations

import os
from logging import ERROR, INFO, WARN
from typing import TYPE_CHECKING, cast

from flwr.app import Context
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp
from flwr.superlink.grid import HttpGrid

from fedhlm_app.client.profiles import learns_clusters
from fedhlm_app.data.items import Items
from fedhlm_app.foreign import foreign_packages
from fedhlm_app.models.trying import try_models
from fedhlm_app.results.at_work import at_work
from fedhlm_app.results.report import write_report
from fedhlm_app.results.run_log import log_result
from fedhlm_app.results.runs import RUN_FOLDER_VARIABLE, RunFolder, runs_base
from fedhlm_app.results.unresolved import RunFailed
from fedhlm_app.server import preflight, resuming
from fedhlm_app.server.prompt_grid import PromptGrid
from fedhlm_app.server.rounds import Federation
from fedhlm_app.server.served_edges import ServedEdges
from fedhlm_app.settings import Settings
from fedhlm_app.settings.ray_cluster import check_python
from fedhlm_app.transport.actor_names import llm_actor_name

if TYPE_CHECKING:
    from fedhlm_app.hosting.edge import EdgeHost

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Check everything, start the LLM, run the rounds, write the run folder."""
    for line in foreign_packages():
        log(WARN, line)
    settings = Settings.from_run_config(context.run_config, runs=runs_base())
    # Real devices are other machines, and reach the LLM by its address.
    simulated = not settings.llm_address
    if simulated:
        check_python()
    items = preflight.check(settings, simulated=simulated)
    if settings.resume and (done := resuming.finished(settings)) is not None:
        log_result(done, settings.resume)
        if done.get("error"):
            raise RunFailed(done["error"])
        return
    try_models(settings, simulated=simulated)
    folder = RunFolder.create(settings)
    log(INFO, "Run folder: %s", folder.path)
    with at_work(folder.path, launched=RUN_FOLDER_VARIABLE in os.environ):
        _run(settings, items, folder, grid, context.run_id)


def _run(settings: Settings, items: Items, folder: RunFolder, grid: Grid, run: int) -> None:
    """Start what the run needs, run its rounds, and end all of it."""
    host = None
    if not settings.llm_address:
        from fedhlm_app.hosting.llm import LanguageModelHost

        if learns_clusters(settings):
            import sklearn.cluster  # noqa: F401  # takes a second or two, which Ray does as well

        host = LanguageModelHost(settings, llm_actor_name(run))
        host.start()
    edges = _edges(settings, run)
    try:
        # Other grids, as a simulation's, take replies at once.
        heard = cast(Grid, PromptGrid(grid)) if isinstance(grid, HttpGrid) else grid
        Federation(settings, items, folder, host, edges).run(heard)
    except RunFailed:
        raise  # The folder is complete.
    except Exception as error:
        try:
            folder.write_failure(f"{type(error).__name__}: {error}")
            write_report(folder)
        except OSError as full:
            # What broke the run is to be heard of, whether or not it can be written down.
            log(ERROR, "%s cannot be written to: %s", folder.path, full)
        raise
    finally:
        if edges is not None:
            edges.stop()
        if host is not None:
            host.stop()


def _edges(settings: Settings, run: int) -> EdgeHost | ServedEdges | None:
    """The edge servers of the run; None where it has none."""
    if settings.peer_mode == "off":
        return None
    if settings.edges:
        return ServedEdges(settings, run)
    from fedhlm_app.hosting.edge import EdgeHost
    from fedhlm_app.hosting.llm import wait_for_ray

    wait_for_ray()
    return EdgeHost(settings, run)
