"""Three ways to reach the LLM service: in this process, a Ray actor, a network address."""

from __future__ import annotations

import threading
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from clients.uplink import LinkDown
from fedhlm_app.actor_names import NAMESPACE
from hlm.wire import Limits, WireError

if TYPE_CHECKING:
    from servers.llm import LanguageModelService


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

    Connections are kept open, so that no token pays for a handshake, and may be used by several
    threads. One that the server has closed meanwhile, be it idle for long or started again, is
    replaced without notice: a request that is sent twice does no harm, since it says itself where
    its tokens belong.

    Parameters
    ----------
    address : str
        ``host:port``, or a URL with scheme ``http`` or ``https`` and perhaps a path.
    timeout : float
        Seconds to wait for a connection, and for each part of an answer, > 0.

    Raises
    ------
    ValueError
        When the address is none.
    """

    def __init__(self, address: str, timeout: float) -> None:
        self.address = address
        self.timeout = timeout
        self._secure, self._host, self._port, self._path = parse_address(address)
        self._idle: list[HTTPConnection] = []
        self._lock = threading.Lock()

    def exchange(self, payload: bytes) -> bytes:
        """Send a request, return the reply.

        Raises
        ------
        LinkDown
            When the server cannot be reached, is too slow or too busy, or fails.
        WireError
            When the server finds the request invalid or too large.
        """
        if not payload:
            raise WireError("an empty request")
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        try:
            if connection is None:
                status, body = self._send(connection := self._open(), payload)
            else:
                try:
                    status, body = self._send(connection, payload)
                except TimeoutError:
                    raise  # a slow server would only be slower with the same request again
                except (OSError, HTTPException):
                    connection.close()
                    status, body = self._send(connection := self._open(), payload)
        except (OSError, HTTPException) as error:
            if connection is not None:
                connection.close()
            # Idle connections to a server that is gone would each have to fail once.
            self.close()
            reason = str(error) or type(error).__name__
            raise LinkDown(f"no answer from the LLM server {self.address}: {reason}") from error
        with self._lock:
            self._idle.append(connection)
        if status == HTTPStatus.OK:
            return body
        text = body.decode("utf-8", errors="replace").strip()
        if status in (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE):
            raise WireError(f"the LLM server {self.address} refused a request: {text}")
        raise LinkDown(f"the LLM server {self.address} answered {status}: {text[:200]}")

    def close(self) -> None:
        """Close idle connections; the next request opens one."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _open(self) -> HTTPConnection:
        kind = _SecureConnection if self._secure else _Connection
        return kind(self._host, self._port, timeout=self.timeout)

    def _send(self, connection: HTTPConnection, payload: bytes) -> tuple[int, bytes]:
        # Header lines are bytes too: only those that HTTP asks for.
        connection.putrequest("POST", self._path, skip_accept_encoding=True)
        connection.putheader("content-length", str(len(payload)))
        connection.endheaders(payload)
        response = connection.getresponse()
        most = Limits().max_bytes
        announced = response.length
        if announced is None and not response.chunked:
            # Its end would be where the connection ends, cut or not.
            raise HTTPException("an answer of unknown length")
        # Of an announced length only a read without a bound tells that it was cut short.
        body = response.read(most + 1) if announced is None else b""
        if max(announced or 0, len(body)) > most:
            raise HTTPException(f"an answer of more than {most} bytes")
        return response.status, body if announced is None else response.read()


class _Connection(HTTPConnection):
    """Sends a request's head together with its body: one small packet rather than two."""

    _head: bytes | None = None

    def send(self, data: Any) -> None:
        if self._head is None:
            self._head = data
            return
        whole, self._head = self._head + data, None
        super().send(whole)


class _SecureConnection(_Connection, HTTPSConnection):
    pass


def parse_address(address: str) -> tuple[bool, str, int, str]:
    """Take a server's address apart: secure or not, host, port, path of the exchange.

    Raises
    ------
    ValueError
        Naming the setting and what is allowed.
    """
    parts = urlsplit(address if "://" in address else f"http://{address}")
    try:
        port = parts.port
    except ValueError:
        port = None
    secure = parts.scheme == "https"
    if port is None and "://" in address:
        port = 443 if secure else 80
    if parts.scheme not in ("http", "https") or not parts.hostname or not port:
        raise ValueError(
            f"llm-address = {address!r}: must be host:port or an http(s) URL, "
            "for example 127.0.0.1:8471"
        )
    return secure, parts.hostname, port, parts.path.rstrip("/") + "/v1/exchange"
