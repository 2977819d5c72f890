"""Requests to a server that speaks OpenAI's API: retries, streams, and errors in one line."""

from __future__ import annotations

import json
import re
import ssl
import time
from collections.abc import Collection, Generator
from contextlib import closing
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from hlm.transport import LinkDown, LinkRefused

KEY_VARIABLE = "FEDHLM_LLM_KEY"
"""Environment variable that may hold the server's key; never a setting."""

TRIES = 4
PAUSE_SECONDS = 0.25
"""First wait before a request is sent again where the server names none; doubled each time."""
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which a request is sent again."""
LIMITED = frozenset({429, 503})
"""Those of them that say nothing of the request."""
DOWN_SECONDS = 1.0
"""How long a server that did not answer is not asked: whoever waits would wait in turn."""

_MOST_BYTES = 1 << 25
_SECONDS = re.compile(r"[0-9]+([.][0-9]+)?")
_SHOWN = 200
"""Most characters that are repeated of what the server says of an error."""


class Refused(LinkDown):
    """The server answered with a status other than 200, and waiting did not mend it."""


class Client:
    """Speaks to one server; may be used by several threads.

    Parameters
    ----------
    url : str
        Base of its paths, as ``http://127.0.0.1:8000/v1``.
    seconds : float
        Longest time for an answer, further tries included, in s, > 0.
    key : str
        Sent as bearer token; empty: none. It is in no message of an error.
    ca_file : str
        PEM file of the authorities trusted for https; empty: the system's.
    proxies : bool
        Go through the proxy that the environment names, if any.

    Raises
    ------
    OSError
        When `ca_file` cannot be read or holds no certificates.
    """

    def __init__(
        self, url: str, seconds: float, key: str = "", ca_file: str = "", proxies: bool = False
    ) -> None:
        self.url = url.rstrip("/")
        self.seconds = seconds
        self._key = key
        self._down: tuple[float, str] = (0.0, "")
        self._http = httpx.Client(
            headers={"authorization": f"Bearer {key}"} if key else {},
            verify=ssl.create_default_context(cafile=ca_file) if ca_file else True,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            timeout=seconds,
            trust_env=proxies,
        )

    def ask(
        self, path: str, body: dict[str, Any] | None = None, again: Collection[int] = BUSY
    ) -> Any:
        """The JSON that answers a request: POST where it has a body; sent again after `again`.

        Raises
        ------
        LinkRefused
            When the server wants another key.
        Refused
            When it answers with another status than 200, also after further tries where that may
            mend it; a pause that it asks for (``Retry-After``) is kept.
        LinkDown
            When it does not answer in time, or with what is no JSON.
        """
        until, why = self._down
        if time.monotonic() < until:
            raise LinkDown(why)
        deadline = time.monotonic() + self.seconds
        for number in range(1, TRIES + 1):
            try:
                answer = self._sent(path, body, deadline)
            except httpx.TimeoutException:
                raise self._silent(f"no answer within {self.seconds:g} s") from None
            except httpx.TransportError as error:
                # One that was started again has closed the connections of before.
                if number == 1:
                    continue
                raise self._silent(f"no answer: {error or type(error).__name__}") from None
            if answer.status_code == httpx.codes.OK:
                return self._read(answer.content)
            pause = _pause(answer, number)
            last = answer.status_code not in again or number == TRIES
            if last or time.monotonic() + pause >= deadline:
                raise self._refusal(answer)
            time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def stream(self, path: str, body: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
        """Events of a streamed answer; closed, the connection is too, and the server stops.

        It just ends where the server or the connection ends it.

        Raises
        ------
        LinkRefused, Refused, LinkDown
            As `ask`, without further tries.
        """
        request = self._http.build_request("POST", self.url + path, json={**body, "stream": True})
        try:
            with closing(self._http.send(request, stream=True)) as answer:
                if answer.status_code != httpx.codes.OK:
                    answer.read()
                    raise self._refusal(answer)
                for line in answer.iter_lines():
                    name, _, data = line.partition(":")
                    if name != "data" or not data.strip():
                        continue
                    if data.strip() == "[DONE]":
                        return
                    if isinstance(event := self._read(data), dict):
                        yield event
        except httpx.TimeoutException:
            raise self._silent(f"no further token within {self.seconds:g} s") from None
        except httpx.TransportError:
            return  # what is still wanted is asked for, which says what is wrong if it still is

    def _sent(self, path: str, body: dict[str, Any] | None, deadline: float) -> httpx.Response:
        """One try, whole; an answer that drips in is late, too."""
        request = self._http.build_request(
            "GET" if body is None else "POST",
            self.url + path,
            json=body,
            timeout=max(0.001, deadline - time.monotonic()),
        )
        with closing(self._http.send(request, stream=True)) as answer:
            content = bytearray()
            for part in answer.iter_bytes():
                content += part
                if len(content) > _MOST_BYTES:
                    raise httpx.RemoteProtocolError(f"more than {_MOST_BYTES} bytes")
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("late")
        headers = {"retry-after": answer.headers.get("retry-after", "")}
        return httpx.Response(answer.status_code, headers=headers, content=bytes(content))

    def _read(self, text: str | bytes) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            raise LinkDown(f"the LLM server {self.url} answered with what is no JSON") from None

    def _silent(self, why: str) -> LinkDown:
        error = LinkDown(f"the LLM server {self.url}: {why}")
        self._down = time.monotonic() + DOWN_SECONDS, str(error)
        return error

    def _refusal(self, answer: httpx.Response) -> LinkDown:
        status = answer.status_code
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            # What the server writes is not repeated: it might repeat the key.
            what = "refuses the key" if self._key else "wants a key: give it in the environment"
            return LinkRefused(
                f"the LLM server {self.url} {what} ({KEY_VARIABLE}, status {status})", cause="token"
            )
        said = " ".join(answer.text.split())
        if self._key:
            said = said.replace(self._key, "***")
        return Refused(f"the LLM server {self.url} answered {status}: {said[:_SHOWN]}")


def _pause(answer: httpx.Response, number: int) -> float:
    """Seconds before the next try, as the server says or twice as long each time."""
    said: str = answer.headers["retry-after"]
    if _SECONDS.fullmatch(said):
        return float(said)
    try:  # a date, or nothing
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except ValueError:
        return PAUSE_SECONDS * float(2 ** (number - 1))
