"""Which of several LLM servers a device asks: the one that holds its texts, as long as it is there.

Rendezvous hashing (Thaler and Ravishankar, 1998): each caller has an order of its own over all
replicas. One that is lost, or comes, moves nobody but its own callers, and whoever chooses comes to
the same choice without a table.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

from starlette.datastructures import Headers
from starlette.types import Scope

from servers.connections import place_of


def caller_of(scope: Scope) -> bytes:
    """Who sends an HTTP request (its ASGI scope), as 16 bytes: its token and its address.

    So it is a device where each has a token, and else an address, as in `servers.origin`.
    """
    token = Headers(scope=scope).get("authorization", "")
    client = scope.get("client")
    address = place_of(client[0]) if client else ""
    return blake2b(f"{address} {token}".encode(), digest_size=16).digest()


def ranked(caller: bytes, replicas: Iterable[str]) -> list[str]:
    """Names of replicas in a caller's order: each is asked where those before it cannot be."""
    return sorted(replicas, key=lambda name: blake2b(name.encode(), key=caller).digest())
