"""A server at a network address: http or https, with a bearer token where it wants one."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from http import HTTPStatus
from http.client import (
    HTTPConnection,
    HTTPException,
    HTTPResponse,
    HTTPSConnection,
    RemoteDisconnected,
)
from typing import Any, TypeVar

from fedhlm_app.settings.address import TOKEN_VARIABLE, parse_address
from hlm.transport import Frames, LinkDown, LinkRefused
from hlm.wire import Limits, WireError

EXCHANGE, STREAM, STATS = "/v1/exchange", "/v1/stream", "/v1/stats"

_EXPIRED, _NOT_YET_VALID = 10, 9
_WRONG_HOST = (62, 64)  # a name, an IP address
_UNKNOWN_ISSUER = (2, 18, 19, 20, 21)
"""Codes of ``X509_verify_cert`` (OpenSSL, x509_vfy.h)."""

_PIECE_BYTES = 1 << 16
_REFUSAL_BYTES = 1 << 12
"""Most bytes of a stream that are read at once, and of why there is none."""

_BESIDE_STREAM = 2
"""Connections that are ready beside a stream: for what the device says, and what it asks next."""

_NO_ANSWER = "Internal Server Error"
"""What a web server says with status 500 for an application that ended without an answer."""

Answer = TypeVar("Answer")


class _CutOff(LinkDown):
    """A proxy lost its server under the request; another one may answer it."""


class HttpTransport:
    """A served LLM at an address (`fedhlm serve llm`): binary bodies over HTTP.

    Connections are kept open, so that no token pays for a handshake, and may be used by several
    threads. One that the server has closed meanwhile, be it idle for long or started again, is
    replaced without notice: a request that is sent twice does no harm, since it says itself where
    its tokens belong. So is one that a proxy has lost with its server.

    Parameters
    ----------
    address : str
        ``host:port``, or a URL with scheme ``http`` or ``https`` and perhaps a path.
    timeout : float
        Seconds to wait for a connection, and for each part of an answer, > 0.
    ca_file : str
        PEM file of the authorities whose certificates are trusted; empty: the system's.
    token : str
        Bearer token, sent with every request; empty: none. It is in no message of an error.
    named, setting : str
        What errors call the server, and the setting that says where it is.

    Raises
    ------
    ValueError
        When the address is none.
    OSError
        When `ca_file` cannot be read or holds no certificates.
    """

    def __init__(
        self,
        address: str,
        timeout: float,
        *,
        ca_file: str = "",
        token: str = "",
        named: str = "LLM server",
        setting: str = "llm-address",
    ) -> None:
        self.address = address
        self.timeout = timeout
        self._who, self._setting = f"the {named} {address}", setting
        self._at = parse_address(address, setting)
        self._trusted = (
            ssl.create_default_context(cafile=ca_file or None) if self._at.secure else None
        )
        self._token = token
        self._idle: list[_Connection] = []
        self._lock = threading.Lock()
        self._readying = threading.Lock()
        self._posting: ThreadPoolExecutor | None = None

    def exchange(self, payload: bytes) -> bytes:
        """Send a request, return the reply.

        Raises
        ------
        LinkRefused
            When the server wants another token, or is not the one it should be.
        LinkDown
            When the server cannot be reached, is too slow or too busy, or fails.
        WireError
            When the server finds the request invalid or too large.
        """
        if not payload:
            raise WireError("an empty request")
        return _twice(partial(self.ask, "POST", EXCHANGE, payload))

    def post(self, payload: bytes) -> None:
        """Send a message (see `hlm.transport.Transport`)."""
        with self._lock:
            if self._posting is None:
                self._posting = ThreadPoolExecutor(1, thread_name_prefix="post")
        self._posting.submit(self.exchange, payload)

    def stream(self, payload: bytes) -> Frames:
        """Open a stream, return its frames (see `hlm.transport.Transport`).

        It has a connection to itself until its end; one that is not read to its end is closed.
        Others are made ready meanwhile: a device that takes its text back asks again before it has
        read what is left, and a handshake would cost it a round trip.

        Raises
        ------
        LinkRefused, LinkDown, WireError
            As `exchange`, also while the frames are read.
        """
        connection, response = _twice(partial(self._opened, payload))
        if len(self._idle) < _BESIDE_STREAM:
            threading.Thread(target=self._make_ready, daemon=True).start()
        return self._frames(connection, response)

    def _opened(self, payload: bytes) -> tuple[_Connection, HTTPResponse]:
        connection, response = self._reached("POST", STREAM, payload, lambda response: response)
        if response.status == HTTPStatus.OK:
            return connection, response
        with closing(connection):
            raise self._refusal(response.status, response.read(_REFUSAL_BYTES))

    def _make_ready(self) -> None:
        """Connect to the server before it is needed."""
        with self._readying:
            while len(self._idle) < _BESIDE_STREAM:
                connection = self._open()
                try:
                    connection.connect()
                except OSError:  # whoever needs one tries again, and hears why there is none
                    return
                self._keep(connection)

    def _frames(self, connection: _Connection, response: HTTPResponse) -> Frames:
        whole = False
        try:
            while frames := response.read1(_PIECE_BYTES):
                yield frames
            whole = True
        except (OSError, HTTPException) as error:
            raise self._named(error) from error
        finally:
            if whole:
                self._keep(connection)
            else:
                connection.close()

    def stats(self) -> dict[str, Any]:
        """What the server says of itself: model, vocabulary, limits, counters.

        Raises
        ------
        LinkRefused, LinkDown
            As `exchange`; `LinkDown` also when what answers is no LLM server.
        """
        try:
            found = json.loads(self.ask("GET", STATS, b""))
        except (ValueError, WireError):
            found = None
        if not isinstance(found, dict):
            raise LinkDown(f"what answers at {self.address} is no LLM server")
        return found

    def close(self) -> None:
        """Close idle connections; the next request opens one."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def ask(self, method: str, path: str, payload: bytes = b"") -> bytes:
        """Send a request to any path of the server, return the body of its answer.

        Raises
        ------
        LinkRefused, LinkDown, WireError
            As `exchange`.
        """
        connection, (status, body) = self._reached(method, path, payload, _whole)
        self._keep(connection)
        if status == HTTPStatus.OK:
            return body
        raise self._refusal(status, body)

    def _refusal(self, status: int, body: bytes) -> LinkDown | WireError:
        """What a status other than OK means."""
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            # What the server writes is not repeated: it might repeat the token.
            what = (
                f"refuses the bearer token (status {status})"
                if self._token
                else f"wants a bearer token (status {status}): give it in a file "
                f"(llm-token-file) or in the environment ({TOKEN_VARIABLE})"
            )
            return LinkRefused(f"{self._who} {what}", cause="token")
        text = " ".join(body.decode("utf-8", errors="replace").split())[:200]
        if status in (HTTPStatus.NOT_FOUND, HTTPStatus.NOT_IMPLEMENTED):
            text = "no server of FedHLM's is there; an address of OpenAI's API ends in /v1"
        if status in (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE):
            return WireError(f"{self._who} refused a request: {text}")
        cut_off = status == HTTPStatus.INTERNAL_SERVER_ERROR and text == _NO_ANSWER
        return (_CutOff if cut_off else LinkDown)(f"{self._who} answered {status}: {text}")

    def _reached(
        self, method: str, path: str, payload: bytes, read: Callable[[HTTPResponse], Answer]
    ) -> tuple[_Connection, Answer]:
        """The connection on which one request was answered, and what was read of the answer."""
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        try:
            if connection is None:
                answer = read(self._send(connection := self._open(), method, path, payload))
            else:
                try:
                    answer = read(self._send(connection, method, path, payload))
                except TimeoutError:
                    raise  # a slow server would only be slower with the same request again
                except (OSError, HTTPException):
                    connection.close()
                    answer = read(self._send(connection := self._open(), method, path, payload))
        except (OSError, HTTPException) as error:
            if connection is not None:
                connection.close()
            # Idle connections to a server that is gone would each have to fail once.
            self.close()
            raise self._named(error) from error
        return connection, answer

    def _keep(self, connection: _Connection) -> None:
        with self._lock:
            self._idle.append(connection)

    def _named(self, error: OSError | HTTPException) -> LinkDown:
        """What went wrong with a connection; a wrong setting is told from a server that is gone."""
        if isinstance(error, ssl.SSLCertVerificationError):
            why = certificate_problem(error, self._at.host)
        elif isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
            why = f"it does not speak TLS, as {self._setting} = https://... says"
        else:
            reason = str(error) or type(error).__name__
            if isinstance(error, RemoteDisconnected) and not self._at.secure:
                reason += f" (if it speaks TLS, {self._setting} must begin with https://)"
            return LinkDown(f"no answer from {self._who}: {reason}")
        return LinkRefused(f"no trust in {self._who}: {why}", cause="certificate")

    def _open(self) -> _Connection:
        if self._trusted is None:
            return _Connection(self._at.host, self._at.port, timeout=self.timeout)
        return _SecureConnection(
            self._at.host, self._at.port, timeout=self.timeout, context=self._trusted
        )

    def _send(
        self, connection: _Connection, method: str, path: str, payload: bytes
    ) -> HTTPResponse:
        # Header lines are bytes too: only those that HTTP asks for.
        connection.putrequest(method, self._at.path + path, skip_accept_encoding=True)
        if self._token:
            connection.putheader("authorization", f"Bearer {self._token}")
        connection.putheader("content-length", str(len(payload)))
        connection.body_follows = bool(payload)
        connection.endheaders(payload)
        return connection.getresponse()


def _twice(ask: Callable[[], Answer]) -> Answer:
    """Ask, and once more where a proxy lost its server under the first request."""
    try:
        return ask()
    except _CutOff:
        return ask()


def _whole(response: HTTPResponse) -> tuple[int, bytes]:
    """Status and body of an answer."""
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

    body_follows = True
    _head: bytes | None = None

    def send(self, data: Any) -> None:
        if self.body_follows and self._head is None:
            self._head = data
            return
        whole, self._head = (self._head or b"") + data, None
        super().send(whole)


class _SecureConnection(_Connection, HTTPSConnection):
    pass


def certificate_problem(error: ssl.SSLCertVerificationError, host: str) -> str:
    """What is wrong with a server's certificate, and what to do about it."""
    code = error.verify_code
    if code == _EXPIRED:
        return "its certificate has expired"
    if code == _NOT_YET_VALID:
        return "its certificate is not valid yet; is this machine's clock right?"
    if code in _WRONG_HOST:
        return f"its certificate is for another host than {host}"
    if code in _UNKNOWN_ISSUER:
        return (
            "its certificate is of an authority that is not trusted here; "
            "name the authority's PEM file in llm-ca-file"
        )
    return f"its certificate is not accepted ({error.verify_message})"
