"""Options that the servers of `fedhlm serve` share, or that take some lines to say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedhlm_app.cli.completing import model_option, set_option

OverridesOption = Annotated[list[str] | None, set_option("Any setting, the same as the run's.")]
HostOption = Annotated[
    str, typer.Option(help="Address to listen on; 0.0.0.0 is every one of this machine.")
]
PortOption = Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")]
ModelOption = model_option()
QueueOption = Annotated[
    int, typer.Option(min=1, help="Requests that may wait; further ones get status 503.")
]
ThreadsOption = Annotated[
    int, typer.Option(min=1, help="Processor threads of the model; 1 repeats bit for bit.")
]
BatchingOption = Annotated[
    bool | None,
    typer.Option(
        "--reproducible/--batch",
        help="Each request by itself, bit for bit repeatable (the default), or those that "
        "wait together from shared forward passes, which is faster.",
    ),
]
CertificateOption = Annotated[
    str, typer.Option(metavar="FILE", help="Speak TLS with this certificate chain (PEM).")
]
KeyOption = Annotated[
    str, typer.Option(metavar="FILE", help="Its key (PEM), unless it is in the same file.")
]
TokenOption = Annotated[
    str,
    typer.Option(
        metavar="FILE",
        help="Answer only who brings the bearer token in this file, or one of those that the "
        "devices.json of `fedhlm keys` knows.",
    ),
]
InsecureOption = Annotated[
    bool,
    typer.Option(
        "--insecure", help="Listen beyond this machine without --tls-cert or --token-file."
    ),
]
LogOption = Annotated[
    bool,
    typer.Option(
        "--json-log", help="Log each request as a line of JSON on standard error; never a text."
    ),
]
StoreOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Keep feedback here and take up the thresholds that rounds bring; without, "
        "nothing is learned. Made if absent.",
    ),
]
ClientOption = Annotated[
    int,
    typer.Option(
        min=0,
        max=2**31 - 1,
        help="Number of this device, its SuperNode's partition-id. Texts of devices that share "
        "one never mix, but their random draws are the same.",
    ),
]
