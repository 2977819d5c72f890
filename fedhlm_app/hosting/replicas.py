"""The LLM service on Ray Serve: the web application of `fedhlm serve llm` in every replica.

Serve's proxies take the requests and hand each to a replica. A device keeps to one, which holds its
texts; where that one is gone, another answers "prefix needed" like any server that knows no text,
and goes on from there. `deploy/ray-serve/llm.yaml` names `build`.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve.request_router import (  # type: ignore[attr-defined]
    FIFOMixin,
    PendingRequest,
    RequestRouter,
    RunningReplica,
)

from fedhlm_app.models.sources import BUILTIN
from fedhlm_app.settings import Settings, SettingsError
from servers.affinity import caller_of, ranked

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from servers.access import Tokens

QUEUE = 512
"""Requests that a replica has in work at a time."""

LOST_SECONDS = 0.05


class DeviceRouter(FIFOMixin, RequestRouter):
    """Sends what a device asks to the same replica, and to its next one only if that one is gone.

    One that has `QUEUE` requests in work counts as gone, until it has fewer. What Serve chose for
    one request is for that one alone. (`FIFOMixin` gives it to the oldest otherwise; without the
    mixin, what is being routed when a replica dies may wait for ever, in Ray 2.55.)
    """

    # A replica that is busy with a pass is slow to say so, and not gone.
    queue_len_response_deadline_s = 5.0
    max_queue_len_response_deadline_s = 10.0

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Replicas in the order of the device that asks."""
        if pending_request is None:
            # Serve looks for one that has lost its turn; give those in work the time they take.
            await asyncio.sleep(LOST_SECONDS)
            left = (one for one in self._pending_requests_to_fulfill if not one.future.done())
            pending_request = next(left, None)
        if pending_request is None or not pending_request.metadata.is_http_request:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # once all have been tried
        caller = caller_of(pickle.loads(pending_request.args[0]).asgi_scope)
        named = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        return [[named[name]] for name in ranked(caller, named)]

    def _get_pending_request_matching_metadata(self, request_metadata: Any = None) -> Any:
        return self._get_pending_request_matching_internal_request_id(request_metadata)


def build(args: Mapping[str, Any]) -> Any:
    """The Serve application of a config file's `args`.

    Parameters
    ----------
    args : mapping
        Settings of the LLM (``llm``, ``llm-context``, ...; ``slm`` where the devices' tokenizer is
        another), ``token-file`` (see `read_tokens`), ``insecure`` (true: whoever reaches the
        proxies is answered) and ``threads`` of a replica (1, which repeats bit for bit).

    Raises
    ------
    SettingsError
        When an argument cannot be, or neither a token nor ``insecure`` is given.
    """
    return deployment(args).bind()


def deployment(args: Mapping[str, Any]) -> Any:
    """The Serve deployment in the application of `build`, which has its errors."""
    from fedhlm_app.hosting.served import build_served, read_tokens

    given = dict(args)
    token_file = str(given.pop("token-file", ""))
    # `serve run` hands on words.
    insecure = str(given.pop("insecure", False)).lower() == "true"
    threads = str(given.pop("threads", 1))
    if not threads.isdecimal() or int(threads) < 1:
        raise SettingsError(f"threads = {threads}: must be a whole number, at least 1")
    settings = Settings.from_sources({"slm": given.get("llm", BUILTIN), **given})

    def tokens() -> Tokens | None:
        found = read_tokens(token_file, "token-file")
        if found is None and not insecure:
            raise SettingsError(
                "token-file: whoever reaches the proxies would be answered; give one "
                "(`fedhlm keys` makes it), or insecure: true where the network is trusted"
            )
        return found

    def application() -> Starlette:
        import torch

        from servers.connections import Connections

        torch.set_num_threads(int(threads))
        # Read where the replica is: another machine's files and environment are its own.
        served = build_served(settings, QUEUE, tokens())
        # The proxies have the connections.
        served.app.state.connections = Connections()
        return served.app

    tokens()
    return serve.deployment(
        serve.ingress(application)(),
        name="llm",
        max_ongoing_requests=QUEUE,
        request_router_config={"request_router_class": DeviceRouter},
    )
