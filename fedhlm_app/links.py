"""Three ways to reach the LLM service: in this process, a Ray actor, a network address."""

from __future__ import annotations

from typing import Any

import httpx

from clients.uplink import LinkDown
from hlm.wire import WireError
from servers.llm import LanguageModelService

NAMESPACE = "fedhlm"
"""Ray namespace of all FedHLM actors."""


def llm_actor_name(run: int) -> str:
    """Name of the LLM actor of one Flower run."""
    return f"llm-{run}"


class DirectLink:
    """The service in this very process.

    Parameters
    ----------
    service : LanguageModelService
        Answers.
    """

    def __init__(self, service: LanguageModelService) -> None:
        self.service = service

    def exchange(self, payload: bytes) -> bytes:
        """Send a request, return the reply."""
        return self.service.handle(payload)


class RayLink:
    """A named Ray actor, looked up when it is first needed.

    Parameters
    ----------
    name : str
        Name in the namespace `NAMESPACE`.
    timeout : float
        Seconds to wait for an answer, > 0.
    """

    def __init__(self, name: str, timeout: float) -> None:
        self.name = name
        self.timeout = timeout
        self._actor: Any = None

    def exchange(self, payload: bytes) -> bytes:
        """Send a request, return the reply.

        Raises
        ------
        LinkDown
            When the actor is not there, has died, or does not answer in time.
        WireError
            When the actor finds the request invalid.
        """
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

        try:
            if self._actor is None:
                self._actor = ray.get_actor(self.name, namespace=NAMESPACE)
            answer: bytes = ray.get(self._actor.exchange.remote(payload), timeout=self.timeout)
        except (RayActorError, GetTimeoutError, ValueError) as error:
            if isinstance(error, WireError):
                raise
            # A killed actor comes back under the same name, perhaps with another identity.
            self._actor = None
            raise LinkDown(f"the LLM actor {self.name!r} does not answer: {error}") from error
        except RayTaskError as error:
            if isinstance(error.cause, WireError):
                raise error.cause from error
            raise LinkDown(f"the LLM actor {self.name!r} failed: {error.cause}") from error
        return answer


class HttpLink:
    """A served LLM at an address (`fedhlm serve llm`): binary bodies over HTTP.

    Parameters
    ----------
    address : str
        ``host:port``, or a URL with a scheme.
    timeout : float
        Seconds to wait for an answer, > 0.
    """

    def __init__(self, address: str, timeout: float) -> None:
        url = address if "://" in address else f"http://{address}"
        # One connection per device is kept open: no handshake per token.
        self._client = httpx.Client(base_url=url, timeout=timeout)
        self.address = address

    def exchange(self, payload: bytes) -> bytes:
        """Send a request, return the reply.

        Raises
        ------
        LinkDown
            When the server cannot be reached, is too slow, or fails.
        WireError
            When the server finds the request invalid.
        """
        try:
            response = self._client.post(
                "/v1/exchange",
                content=payload,
                headers={"content-type": "application/octet-stream"},
            )
        except httpx.HTTPError as error:
            raise LinkDown(f"no answer from the LLM server {self.address}: {error}") from error
        if response.status_code == httpx.codes.BAD_REQUEST:
            raise WireError(f"the LLM server {self.address} refused a request: {response.text}")
        if response.status_code != httpx.codes.OK:
            raise LinkDown(f"the LLM server {self.address} answered {response.status_code}")
        return response.content
