"""The address of a served LLM: `host:port`, or a URL with scheme http or https."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

TOKEN_VARIABLE = "FEDHLM_LLM_TOKEN"
"""Environment variable that may hold the bearer token of the LLM server; never a setting."""

_ALLOWED = "host:port or an http(s) URL, for example 127.0.0.1:8471 or https://llm.example/fedhlm"
_HOST = re.compile(r"[A-Za-z0-9._:-]+(%[A-Za-z0-9._-]+)?")


@dataclass(frozen=True)
class Address:
    """Where a served LLM is.

    Attributes
    ----------
    secure : bool
        Whether it is spoken to over TLS (https).
    host : str
        Name or IP address, without brackets.
    port : int
        From 1.
    path : str
        Prefix of its paths, without a slash at the end; usually empty.
    """

    secure: bool
    host: str
    port: int
    path: str

    @property
    def loopback(self) -> bool:
        """Whether what is sent there stays on this machine."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a name or IP address leads nowhere but to this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_address(address: str, name: str = "llm-address") -> Address:
    """Take the value of the setting `name` apart.

    Raises
    ------
    ValueError
        One sentence that names the setting and what is allowed. It does not repeat an address
        that holds credentials.
    """
    whole = address if "://" in address else f"http://{address}"
    if "@" in whole.partition("://")[2].partition("/")[0]:
        raise ValueError(
            f"setting {name!r} holds credentials (user:password@host), which config.json and "
            f"logs would show: leave them out, and give the server's bearer token in a file "
            f"(llm-token-file) or in the environment ({TOKEN_VARIABLE})"
        )
    try:
        parts = urlsplit(whole)
        port = parts.port
    except ValueError:
        raise _not_allowed(address, name) from None
    if parts.query or parts.fragment:
        # A token in the query would end up in config.json and in the logs of proxies.
        shown = f"{parts.scheme}://{parts.netloc}{parts.path}"
        raise ValueError(f"setting {name!r} = {shown!r} has a query: allowed is {_ALLOWED}")
    secure = parts.scheme == "https"
    if port is None and "://" in address:
        port = 443 if secure else 80
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(host) or not port:
        raise _not_allowed(address, name)
    if re.search(r"[^\x21-\x7e]", parts.path):
        raise _not_allowed(address, name)
    return Address(secure, host, port, parts.path.rstrip("/"))


def speaks_openai(address: str) -> bool:
    """Whether an address is one of OpenAI's API, whose URLs end in ``/v1``, and not of ours."""
    return address.rstrip("/").endswith("/v1")


def _not_allowed(address: str, name: str) -> ValueError:
    return ValueError(f"setting {name!r} = {address!r} is not allowed: {_ALLOWED}")
