"""`fedhlm keys`: certificates of servers, and what devices show to be let in."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from fedhlm_app.cli.error_log import ends_with
from fedhlm_app.cli.lazy import command_app
from fedhlm_app.cli.run import BAD_SETTINGS

keys_app = command_app(
    no_args_is_help=True,
    help="Make certificates for servers and keys for devices, and take them back.",
)

DEVICES, SERVER, AUTHORITY = "devices.json", "server.pem", "ca.pem"

_Folder = Annotated[
    Path, typer.Option("--folder", "-f", metavar="FOLDER", help="Where they are kept.")
]
_Device = Annotated[
    str,
    typer.Argument(
        metavar="DEVICE",
        help="Name of the device, or TENANT/NAME: all devices of a tenant, such as a run or a "
        "customer, share the turns and quotas of one.",
    ),
]
_KEYS = Path("keys")


@keys_app.command()
def create(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Made if absent.")] = _KEYS,
    name: Annotated[
        list[str] | None,
        typer.Option(
            "--name",
            "-n",
            help="Name or IP address by which devices ask the server, besides localhost and "
            "127.0.0.1; may be repeated.",
        ),
    ] = None,
) -> None:
    """Make an authority of one's own, and a server's certificate that it has signed.

    In FOLDER then are ca.pem, which devices get, ca.key, which nobody gets, server.pem and
    server.key. Where there is an authority already it signs a new certificate, valid for 397 days,
    and devices need nothing new: so names are changed, and certificates renewed.

    - `fedhlm keys create -n 10.0.0.5 -n llm.example`

    - `fedhlm serve llm --host 10.0.0.5 --tls-cert keys/server.pem --tls-key keys/server.key
      --token-file keys/devices.json`

    Exit status: 0, or 2 when FOLDER cannot be written to or a name is none.
    """
    from servers.access import DeviceTokens, write_private
    from servers.certificates import Authority, read_certificate

    with _refusals():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _refusals(), _alone_in(folder):
        hosts = dict.fromkeys([*(name or []), "localhost", "127.0.0.1"])
        Authority(folder).issue(folder / SERVER, list(hosts))
        if not DeviceTokens(folder / DEVICES).digests:
            write_private(folder / DEVICES, b"{}\n")
        until = read_certificate(folder / SERVER).not_valid_after_utc
    print(f"{folder / SERVER}: for {', '.join(hosts)}, until {until:%Y-%m-%d}")
    print(f"next: fedhlm keys issue DEVICE -f {shlex.quote(str(folder))}")


@keys_app.command()
def issue(device: _Device, folder: _Folder = _KEYS) -> None:
    """Give a device a token, and a key pair for its SuperNode, in a folder to be moved to it.

    FOLDER/devices/DEVICE then holds ca.pem, token, node.key and node.pub. Servers know the token by
    its digest in FOLDER/devices.json, which they read again by themselves; node.pub is for `flwr
    supernode register`. Move the folder to the device: it is not needed here.

    - `fedhlm keys issue phone`

    - `fedhlm keys issue acme/phone`: beside other tenants acme has no more than its share.

    Exit status: 0, or 2 when the device has a token already or its name is none.
    """
    from servers.access import DeviceTokens, write_private
    from servers.certificates import node_keys

    with _refusals(), _alone_in(folder):
        authority = (folder / AUTHORITY).read_bytes()
        token = DeviceTokens(folder / DEVICES).issue(device)
        own = folder / "devices" / device
        own.mkdir(parents=True, exist_ok=True, mode=0o700)
        private, public = node_keys()
        write_private(own / "token", token.encode() + b"\n")
        write_private(own / "node.key", private)
        (own / "node.pub").write_bytes(public)
        (own / AUTHORITY).write_bytes(authority)
    print(f"{own}: move it to the device, where it is the setting llm-token-file = .../token")


@keys_app.command()
def revoke(device: _Device, folder: _Folder = _KEYS) -> None:
    """Let a device's token open nothing any more; servers need no restart.

    Its SuperNode is another matter: `flwr supernode unregister`. Exit status: 0, or 2 when the
    device has no token.
    """
    from servers.access import DeviceTokens

    with _refusals(), _alone_in(folder):
        DeviceTokens(folder / DEVICES).revoke(device)
    print(f"{device}: revoked")


@keys_app.command(name="list")
def list_keys(folder: _Folder = _KEYS) -> None:
    """List the devices that have a token, and how long certificates are valid.

    Exit status: 0, or 2 when there are none in FOLDER.
    """
    from servers.access import DeviceTokens
    from servers.certificates import read_certificate

    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("what", style="bold cyan", overflow="fold")
    table.add_column("state", overflow="fold")
    with _refusals():
        for file in (AUTHORITY, SERVER):
            until = read_certificate(folder / file).not_valid_after_utc
            table.add_row(file, f"until {until:%Y-%m-%d}")
        for device in sorted(DeviceTokens(folder / DEVICES).digests):
            table.add_row(device, "has a token")
    Console().print(table)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other command changes what is in a folder: it would be lost, or ours."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def _refusals() -> Iterator[None]:
    with ends_with(BAD_SETTINGS, ValueError, OSError, trace=True):
        try:
            yield
        except FileNotFoundError as error:
            raise ValueError(
                f"{error.filename}: not there; `fedhlm keys create` makes it"
            ) from error
