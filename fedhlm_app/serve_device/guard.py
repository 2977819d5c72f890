"""Keeps web pages of other sites from using a device: its LLM budget, and what it learns from.

A browser sends what any page tells it to, but names the page's site in `Origin`, and asks a server
of another site before it sends JSON (which is not answered here). A page whose own name was pointed
at this machine shows that name in `Host`.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from fedhlm_app.serve_device.refused import Refused

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class OwnSite:
    """Refuses requests under other names, from other sites' pages, and bodies that are no JSON.

    Parameters
    ----------
    app : ASGI application
        What is guarded.
    hosts : collection of str
        Names and addresses under which it may be asked, in lower case, without port.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        refused = self._refused(scope) if scope["type"] == "http" else None
        if refused is None:
            await self.app(scope, receive, send)
            return
        scope["about"]["refused"] = refused.code
        # What is still to come of the body must not be taken for a request.
        response = JSONResponse(refused.as_json(), refused.status, {"connection": "close"})
        await response(scope, receive, send)

    def _refused(self, scope: Scope) -> Refused | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name.strip("[]") not in self.hosts:
            allowed = ", ".join(sorted(self.hosts))
            message = f"host = {host!r}: this device is not asked by that name; allowed: {allowed}"
            return Refused(403, message, None, "host_not_allowed")
        origins = headers.getlist("origin")
        if [one for one in origins if one.lower().partition("://")[2] != host]:
            message = f"origin = {origins[0]!r}: pages of other sites may not ask this device"
            return Refused(403, message, None, "origin_not_allowed")
        kind = headers.get("content-type", "")
        if scope["method"] == "POST" and kind.partition(";")[0].strip() != "application/json":
            message = f"content-type = {kind!r}: must be application/json"
            return Refused(415, message, None, "unsupported_media_type")
        return None
