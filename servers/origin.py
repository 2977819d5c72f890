"""Where a request came from, as far as what carried it knows."""

from __future__ import annotations

from typing import NamedTuple


class Origin(NamedTuple):
    """Who asks; all requests of one origin share its turns and quotas.

    Attributes
    ----------
    device : str
        Name of the device that its token proves; empty where tokens name nobody.
    address : str
        Where it asks from, unless its device is known; empty within a process.
    """

    device: str = ""
    address: str = ""


NOBODY = Origin()
"""Within a process, where all trust each other."""

Caller = tuple[str, int]
"""A device's name, if its token proves one, and the client number that it gives itself."""
