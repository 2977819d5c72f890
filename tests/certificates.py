"""Certificates of an authority made for a test."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from servers import certificates


class Authority:
    """An authority that writes certificates into a folder.

    Parameters
    ----------
    folder : Path
        Made if absent.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._signs = certificates.Authority(folder)
        self.file = self._signs.file

    def issue(self, *hosts: str, expired: bool = False, later: bool = False) -> tuple[str, str]:
        """Files of a certificate for these names or IP addresses, and of its key.

        One that is valid in an hour is what a clock that is an hour late makes of a new one.
        """
        file = self.folder / f"{len(list(self.folder.iterdir()))}.pem"
        age = timedelta(days=certificates.SERVER_DAYS + 1 if expired else 0, hours=-1 * later)
        self._signs.issue(file, hosts, since=datetime.now(UTC) - age)
        return str(file), str(file.with_suffix(".key"))
