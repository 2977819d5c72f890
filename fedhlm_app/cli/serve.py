"""`fedhlm serve`: the large model as a process of its own, for devices on a network."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer
from rich.console import Console

from fedhlm_app.cli.run import BAD_SETTINGS, COMPLETED, FAILED, collect, say
from fedhlm_app.settings import Settings

DEFAULT_PORT = 8471

serve_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Serve a model to devices on a network.",
)


@serve_app.callback()
def _group() -> None:
    """Serve a model to devices on a network."""


@serve_app.command()
def llm(
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 is every one of this machine.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")
    ] = DEFAULT_PORT,
    model: Annotated[
        str | None, typer.Option("--llm", help="builtin, a hub name or a folder.")
    ] = None,
    sessions: Annotated[
        int | None, typer.Option(help="Prompts whose key-value cache is kept.")
    ] = None,
    context: Annotated[int | None, typer.Option(help="Longest text, in tokens.")] = None,
    batch_wait_ms: Annotated[
        float | None, typer.Option(help="Wait of a request for others to batch with.")
    ] = None,
    reproducible: Annotated[
        bool | None,
        typer.Option(
            "--reproducible/--batch",
            help="Each request by itself, bit for bit repeatable (the default), or those that "
            "wait together from shared forward passes, which is faster.",
        ),
    ] = None,
    queue: Annotated[
        int, typer.Option(min=1, help="Requests that may wait; further ones get status 503.")
    ] = 256,
    threads: Annotated[
        int, typer.Option(min=1, help="Processor threads of the model; 1 repeats bit for bit.")
    ] = 1,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="Settings such as llm-device."),
    ] = None,
) -> None:
    """Serve the large model over HTTP until SIGTERM or Ctrl-C.

    Prints one line when it is ready. Devices find it by the setting `llm-address`:

    - `fedhlm serve llm --host 0.0.0.0 --port 8471`

    - `flwr run . my-superlink --run-config 'llm-address="10.0.0.5:8471"'`

    Serve one run at a time. There is no encryption and no access control: listen on networks that
    you trust only. Exit status: 0 after a stop, 1 when the address cannot be listened on or the
    model cannot be loaded, 2 when a setting is wrong.
    """
    given: dict[str, object] = {
        "llm": model,
        "llm-sessions": sessions,
        "llm-context": context,
        "llm-batch-wait-ms": batch_wait_ms,
        "reproducible": reproducible,
    }
    errors = Console(stderr=True, highlight=False)
    try:
        settings = collect(given, overrides or [])
    except ValueError as error:
        say(errors, str(error))
        raise typer.Exit(BAD_SETTINGS) from None
    try:
        serve(settings, host, port, queue, threads)
    except (OSError, ValueError) as error:
        say(errors, str(error))
        raise typer.Exit(FAILED) from None
    raise typer.Exit(COMPLETED)


def serve(settings: Settings, host: str, port: int, queue: int, threads: int) -> None:
    """Load the model and serve it until the process is asked to stop.

    Raises
    ------
    OSError
        When the address cannot be listened on, or the model cannot be fetched.
    ValueError
        When the model cannot be loaded.
    """
    import torch

    from fedhlm_app.serving import build_service
    from servers.service import ServedLanguageModel, ServiceOptions, listen, make_server

    # Taken before the model is loaded: a port in use is told at once.
    listener = listen(host, port)
    torch.set_num_threads(threads)
    options = ServiceOptions(
        wait=settings.llm_batch_wait_ms / 1000,
        most=1 if settings.reproducible else 64,
        queue=queue,
    )
    served = ServedLanguageModel(build_service(settings), options, settings.llm)
    engine = served.service.engine

    def ready() -> None:
        name, number = listener.getsockname()[:2]
        at = f"[{name}]:{number}" if ":" in name else f"{name}:{number}"
        print(
            f"serving {settings.llm} at {at} "
            f"(vocabulary {engine.vocab}, context {engine.max_context}, "
            f"{engine.max_sessions} sessions)",
            flush=True,
        )

    # The server raises the signal that stopped it once more: being stopped is no failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server = make_server(served.app, ready)
    server.run(sockets=[listener])
    if not server.started:
        sys.exit(FAILED)
