"""What `fedhlm doctor` looks at: versions, models, services, certificates, clock, disk, ports."""

from __future__ import annotations

import json
import re
import shutil
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from importlib import metadata
from pathlib import Path
from typing import Any

from fedhlm_app.settings import Settings

OK, NOTE, WRONG = "ok", "note", "wrong"

SECONDS = 5.0
"""Longest wait for a server."""
DAYS = 30
"""Certificates that are valid for fewer are worth a note."""
SKEW = 30.0
"""Seconds by which clocks may differ."""
NEEDED, LITTLE = 0.5, 5.0
"""GiB of disk without which nothing goes, and with which not much does."""


@dataclass(frozen=True)
class Finding:
    """Something that was looked at.

    Attributes
    ----------
    what : str
        What it was.
    state : {"ok", "note", "wrong"}
        Wrong: something will not work.
    said : str
        What was found, and what to do about it.
    """

    what: str
    state: str
    said: str


def checkup(settings: Settings, keys: Path | None, superlink: str) -> Iterator[Finding]:
    """Look at everything, one after the other.

    Parameters
    ----------
    settings : Settings
        Of the run or server that is to work.
    keys : Path or None
        Folder of `fedhlm keys`.
    superlink : str
        URL of Flower's SuperLink; empty: none.
    """
    yield from _versions()
    yield _tried("models", lambda: _models(settings))
    yield from _llm(settings)
    if superlink:
        yield _tried("superlink", lambda: _superlink(superlink, settings.llm_ca_file))
    if keys is not None:
        yield from _keys(keys)
    yield _tried("run-dir", lambda: _writable(settings))
    for name, folder in (("disk", Path(settings.run_dir)), ("temporary files", _TEMPORARY)):
        yield _disk(name, folder)
    yield _files()
    for port, command in ((8471, "serve llm"), (8472, "serve device")):
        yield _port(port, command)


_TEMPORARY = Path(tempfile.gettempdir())


def _tried(what: str, look: Callable[[], str]) -> Finding:
    """What a check says, or the error in which it ends: such errors say what is allowed."""
    try:
        return Finding(what, OK, look())
    except (ValueError, OSError) as error:
        return Finding(what, WRONG, str(error))


def _versions() -> Iterator[Finding]:
    from fedhlm_app.results.runs import versions

    yield Finding("versions", OK, ", ".join(f"{name} {one}" for name, one in versions().items()))
    try:
        wanted = metadata.requires("fedhlm") or []
    except metadata.PackageNotFoundError:
        yield Finding("packages", NOTE, "fedhlm is not installed, but run from its source")
        return
    missing = []
    for name in [re.split(r"[^\w.-]", line)[0] for line in wanted if "extra ==" not in line]:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        yield Finding("packages", WRONG, f"missing: {', '.join(missing)}; pip install fedhlm")


def _models(settings: Settings) -> str:
    from fedhlm_app.hosting.pairs import check_pair
    from fedhlm_app.models.sources import check_folder
    from fedhlm_app.models.vocabulary import one_tokenizer
    from fedhlm_app.server.preflight import check_devices

    check_devices(settings)
    check_folder(settings.slm, "slm")
    check_folder(settings.llm, "llm", weights=not settings.llm_address)
    check_pair(settings)
    alike = one_tokenizer(settings.slm, settings.llm)
    tokenizers = "one tokenizer" if alike else "different tokenizers: text is compared"
    return f"slm {settings.slm}, llm {settings.llm}: there, with {tokenizers}"


def _llm(settings: Settings) -> Iterator[Finding]:
    if not settings.llm_address:
        yield Finding("llm", OK, "loaded here: no llm-address is set")
        return
    from fedhlm_app.server.preflight import require_model
    from fedhlm_app.transport.llm_access import check_llm

    told: dict[str, Any] = {}
    begun = answered = time.time()

    def ask() -> str:
        nonlocal begun, answered
        begun = time.time()
        told.update(check_llm(settings))
        # Before the model is looked at, which may take seconds here.
        answered = time.time()
        require_model(settings, told)
        took = 1000 * (answered - begun)
        return f"{settings.llm_address} serves {told.get('model')}, answered after {took:.0f} ms"

    found = _tried("llm", ask)
    silent = "no answer from" in found.said
    hint = "; is `fedhlm serve llm` running there, and may this machine reach it?" if silent else ""
    yield replace(found, said=found.said + hint)
    if "time" in told:
        ahead = float(told["time"]) - (begun + answered) / 2
        said = f"{abs(ahead):.1f} s {'behind' if ahead > 0 else 'ahead of'} the LLM server's"
        state = WRONG if abs(ahead) > SKEW else OK
        more = "; set both by NTP, or certificates seem expired" if state == WRONG else ""
        yield Finding("clock", state, said + more)
    if told and settings.llm_address.startswith("https://"):
        yield _tried("certificate", lambda: _served_certificate(settings))


def _served_certificate(settings: Settings) -> str:
    from fedhlm_app.settings.address import parse_address

    at = parse_address(settings.llm_address)
    trusted = ssl.create_default_context(cafile=settings.llm_ca_file or None)
    with (
        socket.create_connection((at.host, at.port), timeout=SECONDS) as plain,
        trusted.wrap_socket(plain, server_hostname=at.host) as connection,
    ):
        until = str((connection.getpeercert() or {})["notAfter"])
    return _valid(datetime.fromtimestamp(ssl.cert_time_to_seconds(until), UTC), "the LLM server's")


def _valid(until: datetime, whose: str) -> str:
    days = (until - datetime.now(UTC)).days
    if days < 0:
        raise ValueError(f"{whose} expired on {until:%Y-%m-%d}; renew it (`fedhlm keys create`)")
    if days < DAYS:
        raise ValueError(f"{whose} expires in {days} days; renew it (`fedhlm keys create`)")
    return f"{whose} is valid until {until:%Y-%m-%d}"


def _superlink(url: str, ca_file: str) -> str:
    import httpx

    trusted = ssl.create_default_context(cafile=ca_file or None)
    try:
        answer = httpx.get(f"{url.rstrip('/')}/health", timeout=SECONDS, verify=trusted)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ValueError(f"{url} does not answer: {error}; is flower-superlink running?") from None
    if not answer.is_success:
        raise ValueError(f"{url} answers {answer.status_code}: no SuperLink's HTTP address")
    return f"{url} answers"


def _keys(folder: Path) -> Iterator[Finding]:
    from fedhlm_app.cli.keys import AUTHORITY, DEVICES, SERVER
    from servers.access import DeviceTokens
    from servers.certificates import read_certificate

    for name in (AUTHORITY, SERVER):

        def until(file: Path = folder / name) -> str:
            return _valid(read_certificate(file).not_valid_after_utc, str(file))

        yield _tried("certificate", until)
    yield _tried("devices", lambda: f"{len(DeviceTokens(folder / DEVICES).digests)} have a token")
    secret = [*folder.rglob("*.key"), *folder.rglob("token")]
    for file in (one for one in secret if one.stat().st_mode & 0o077):
        yield Finding("keys", WRONG, f"others may read {file}; chmod 600 {file}")


def _writable(settings: Settings) -> str:
    from fedhlm_app.server.preflight import check_writable

    check_writable(settings)
    return f"{settings.run_dir} can be written to"


def _disk(what: str, folder: Path) -> Finding:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free / 2**30
    state = WRONG if free < NEEDED else NOTE if free < LITTLE else OK
    hint = "" if state == OK else "; make room, or choose another (run-dir, TMPDIR)"
    return Finding(what, state, f"{free:.1f} GiB free in {there}{hint}")


def _files() -> Finding:
    from servers.connections import EACH_ADDRESS, MOST_CONNECTIONS, OTHER_FILES, open_files

    files = open_files(MOST_CONNECTIONS + OTHER_FILES)
    allowed = min(MOST_CONNECTIONS, files - OTHER_FILES)
    state = NOTE if allowed < 4 * EACH_ADDRESS else OK
    hint = "; `ulimit -n` as root, or LimitNOFILE= of systemd, raises it" if state == NOTE else ""
    return Finding("open files", state, f"a server here takes {allowed} connections{hint}")


def _port(port: int, command: str) -> Finding:
    what = f"port {port}"
    connection = HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.connect()
    except OSError:
        return Finding(what, OK, f"free for `fedhlm {command}`")
    try:
        connection.request("GET", "/healthz")
        told = json.loads(connection.getresponse().read(1 << 16))
        if told["status"] == "ok":
            return Finding(what, OK, f"`fedhlm {command}` answers, or another server of FedHLM")
        found = "something"
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        found = "something that is no server of FedHLM, or one that speaks TLS,"
    finally:
        connection.close()
    return Finding(what, NOTE, f"{found} listens; give `fedhlm {command}` another (--port)")
