"""The LLM service of a run: built from settings, hosted in a Ray actor."""

from __future__ import annotations

import os
import time
from functools import partial
from logging import WARNING
from typing import TYPE_CHECKING, Any

from fedhlm_app.settings import Settings
from fedhlm_app.settings.ray_cluster import llm_gpus
from fedhlm_app.transport.actor_names import NAMESPACE
from servers.actors import LanguageModelActor, start_actor

if TYPE_CHECKING:
    from servers.llm import LanguageModelService


def build_service(settings: Settings) -> LanguageModelService:
    """Load the large model and put the service around it."""
    # Imported by the process that runs the model; the ServerApp only says what is to be built.
    from fedhlm_app.hosting.pairs import build_pair
    from servers.llm import LanguageModelService

    return LanguageModelService(build_pair(settings))


def wait_for_ray() -> None:
    """Wait until Flower's simulation has started Ray in this process.

    Calling `ray.init` here instead would crash the simulation. A cluster that asks for no token is
    named in the log: `fedhlm run` starts none, but `flwr run` alone does.

    Raises
    ------
    RuntimeError
        When Ray does not come up: the app is not run in a simulation.
    """
    import ray
    from flwr.common.logger import log  # which the actor's process can do without

    deadline = time.monotonic() + 120.0
    while not ray.is_initialized():
        if time.monotonic() > deadline:
            raise RuntimeError(
                "no Ray after 120 s: outside a simulation the LLM must be served "
                "(`fedhlm serve llm`) and named by the setting llm-address = 'host:port', and edge "
                "servers, with peer-mode, by edge-addresses (`fedhlm serve edge`)"
            )
        time.sleep(0.05)
    if os.environ.get("RAY_AUTH_MODE") != "token":
        log(
            WARNING,
            "Ray asks for no token: whoever reaches its ports can run code here. `fedhlm run` sets "
            'one; for `flwr run` see "Who may use Ray" in docs/deploy.md',
        )


class LanguageModelHost:
    """Keeps the LLM actor of a run alive.

    Parameters
    ----------
    settings : Settings
        Of the run.
    name : str
        Name of the actor.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        self.settings = settings
        self.name = name
        self._actor: Any = None

    def start(self) -> None:
        """Start the actor; its model is loaded while others get ready too."""
        wait_for_ray()
        self.ensure()

    def wait(self) -> dict[str, Any]:
        """Wait until the model is loaded; what it says of itself."""
        import ray

        found: dict[str, Any] = ray.get(self._actor.describe.remote())
        return found

    def ensure(self) -> None:
        """Find the actor, or start it again if it is gone for good."""
        import ray

        settings = self.settings
        known: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        actor = start_actor(
            LanguageModelActor,
            self.name,
            NAMESPACE,
            partial(build_service, settings),
            settings.llm_batch_wait_ms / 1000,
            # Float sums depend on the shape of a batch: only a batch of one request repeats.
            1 if settings.reproducible else 64,
            gpus=llm_gpus(settings, known.get("GPU", 0.0)),
        )
        # The handle of one that is found again does not keep it.
        if actor != self._actor:
            self._actor = actor

    def stats(self) -> dict[str, float]:
        """Counters of the engine, empty when it does not answer."""
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError

        try:
            found: dict[str, float] = ray.get(self._actor.stats.remote(), timeout=5.0)
        except (RayActorError, GetTimeoutError):
            return {}
        return found

    def stop(self) -> None:
        """End the actor."""
        import ray

        if self._actor is not None:
            ray.kill(self._actor, no_restart=True)
            self._actor = None
