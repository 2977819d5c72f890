"""`fedhlm serve`: the large model for devices on a network, or a device's text for programs."""

from __future__ import annotations

from typing import Annotated

import typer

from fedhlm_app.cli.device import allowed_hosts, open_texts, serve_texts
from fedhlm_app.cli.edge import open_upstream, serve_edge
from fedhlm_app.cli.error_log import ends_with
from fedhlm_app.cli.lazy import command_app
from fedhlm_app.cli.listening import Access, log_as_json, read_access, run_until_stopped, take_port
from fedhlm_app.cli.policy import (
    ClusterOption,
    LlmAddressOption,
    RunOption,
    choose_policy,
    collect_alone,
)
from fedhlm_app.cli.reaching import reach_llm, told_of_loading
from fedhlm_app.cli.run import BAD_SETTINGS, FAILED, collect
from fedhlm_app.cli.serve_options import (
    BatchingOption,
    CertificateOption,
    ClientOption,
    HostOption,
    InsecureOption,
    KeyOption,
    LogOption,
    ModelOption,
    OverridesOption,
    PortOption,
    QueueOption,
    StoreOption,
    ThreadsOption,
    TokenOption,
)
from fedhlm_app.cli.supernode import FLOWERS_OWN, supernode
from fedhlm_app.settings import Settings, SettingsError

DEFAULT_PORT = 8471
DEVICE_PORT = 8472
EDGE_PORT = 8473

serve_app = command_app(
    no_args_is_help=True,
    help="Serve the large model to devices, or a device's text to programs.",
)


@serve_app.command()
def llm(
    host: HostOption = "127.0.0.1",
    port: PortOption = DEFAULT_PORT,
    llm: Annotated[str | None, ModelOption] = None,
    slm: Annotated[
        str | None,
        typer.Option(help="The devices' small model, if its tokenizer is another: text is sent."),
    ] = None,
    sessions: Annotated[
        int | None, typer.Option(help="Prompts whose key-value cache is kept.")
    ] = None,
    context: Annotated[int | None, typer.Option(help="Longest text, in tokens.")] = None,
    batch_wait_ms: Annotated[
        float | None, typer.Option(help="Wait of a request for others to batch with.")
    ] = None,
    reproducible: BatchingOption = None,
    pace_ms: Annotated[
        float | None,
        typer.Option(help="Least time of a forward pass: stands in for a larger model."),
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="What runs the model: engine (default), or openai at --url.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="A server that speaks OpenAI's API, as http://HOST:8000/v1; --llm is then "
            "its tokenizer, and FEDHLM_LLM_KEY its key, if it wants one."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model at --url; its only one where none is given.")
    ] = None,
    queue: QueueOption = 512,
    per_address: Annotated[
        int,
        typer.Option(
            min=1,
            help="Connections from one address at a time; more for devices behind one proxy.",
        ),
    ] = 256,
    threads: ThreadsOption = 1,
    tls_cert: CertificateOption = "",
    tls_key: KeyOption = "",
    token_file: TokenOption = "",
    insecure: InsecureOption = False,
    json_log: LogOption = False,
    overrides: OverridesOption = None,
) -> None:
    """Serve the large model over HTTP until SIGTERM or Ctrl-C.

    Prints one line when it is ready. Devices find it by the setting `llm-address`:

    - `fedhlm serve llm --host 10.0.0.5 --tls-cert llm.pem --tls-key llm.key --token-file token`

    - `flwr run . my-superlink --run-config 'llm-address="https://10.0.0.5:8471"'`

    - `fedhlm serve llm --backend openai --url http://127.0.0.1:8000/v1 --llm ./tokenizer`

    Without --token-file the token is that of FEDHLM_LLM_TOKEN, if there is one. Exit status: 0
    after a stop, 1 when the model cannot be loaded, 2 when a setting, the certificate or the token
    is wrong or the address cannot be listened on.
    """
    from fedhlm_app.hosting.pairs import check_pair
    from fedhlm_app.models.sources import check_folder
    from fedhlm_app.server import preflight

    given: dict[str, object] = {
        "llm": llm,
        "llm-sessions": sessions,
        "llm-context": context,
        "llm-batch-wait-ms": batch_wait_ms,
        "reproducible": reproducible,
    }
    with ends_with(BAD_SETTINGS, ValueError, trace=True):
        given["llm-backend"] = _backend(backend, pace_ms, url, model)
        settings = collect(given, overrides or [])
        settings = settings.model_copy(update={"slm": slm or settings.llm})
        check_folder(settings.llm, "llm", weights=settings.loads_llm)
        check_folder(settings.slm, "slm", weights=False)
        preflight.check_devices(settings, simulated=False)
        check_pair(settings)
        access = read_access(host, tls_cert, tls_key, token_file, insecure=insecure)
    with (
        ends_with(FAILED, OSError, ValueError),
        ends_with(BAD_SETTINGS, SettingsError, trace=True),
    ):
        if json_log:
            log_as_json()
        serve(settings, host, port, queue, per_address, threads, access)


def _backend(
    name: str | None, pace_ms: float | None, url: str | None, model: str | None
) -> str | None:
    """The setting `llm-backend` that options stand for; None where none was given."""
    if url is None and name == "openai":
        raise SettingsError("--backend openai: give the server's URL too (--url)")
    if url is None and model is not None:
        raise SettingsError(f"--model {model}: names a model at --url; a model to load is --llm")
    if url is not None and (pace_ms is not None or name not in (None, "openai")):
        raise SettingsError(f"--url {url}: goes with --backend openai alone, without --pace-ms")
    if url is not None:
        return f"openai:{url}" + (f"#{model}" if model else "")
    return name if pace_ms is None else f"engine:{pace_ms:g}"


def serve(
    settings: Settings,
    host: str,
    port: int,
    queue: int,
    per_address: int,
    threads: int,
    access: Access,
) -> None:
    """Load the model and serve it until the process is asked to stop.

    Raises
    ------
    OSError
        When the model cannot be fetched.
    ValueError
        When the address cannot be listened on, or the model cannot be loaded.
    """
    import torch

    from fedhlm_app.hosting.served import build_served

    # Taken before the model is loaded: a port in use is told at once.
    listener = take_port(host, port)
    torch.set_num_threads(threads)
    with told_of_loading():
        served = build_served(settings, queue, access.tokens)
    engine = served.service.engine

    def ready(at: str) -> None:
        where = f"https://{at}" if access.certificate else at
        print(
            f"serving {settings.llm} at {where} "
            f"(vocabulary {engine.vocab}, context {engine.max_context}, "
            f"{engine.max_sessions} sessions{', with a token' if access.tokens else ''}"
            f"{'' if settings.loads_llm else f', by {engine.reading}'}"
            f"{f', slowly: {engine.reading}' if engine.slow else ''})",
            flush=True,
        )

    run_until_stopped(served.app, listener, ready, access, per_address)


@serve_app.command()
def edge(
    host: HostOption = "127.0.0.1",
    port: PortOption = EDGE_PORT,
    upstream: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Pass on what devices ask of the LLM at this address, so that they need no other.",
        ),
    ] = "",
    upstream_ca: Annotated[
        str, typer.Option(metavar="FILE", help="PEM file of the authorities trusted there.")
    ] = "",
    slm: Annotated[str, ModelOption] = "",
    tls_cert: CertificateOption = "",
    tls_key: KeyOption = "",
    token_file: TokenOption = "",
    insecure: InsecureOption = False,
    json_log: LogOption = False,
) -> None:
    """Serve a cluster's edge server until SIGTERM or Ctrl-C: its peers' tokens, and eq. 7.

    Which cluster, which devices and which rules, the ServerApp of a run says when it begins. It
    finds edge servers by the setting `edge-addresses`, one for each cluster:

    - `fedhlm serve edge --port 8473 --upstream 127.0.0.1:8471`

    - `flwr run . my-superlink --run-config 'preset="fedhlm" clusters=2 edge-addresses="127.0.0.1:8473,127.0.0.1:8474" llm-address="127.0.0.1:8471"'`

    With --slm the devices' small model, whose token embeddings it compares, is called otherwise
    here than in the run. A token of a device (`fedhlm keys`) lets it ask; orders of a run take the
    one issued for `cloud`, or one that is nobody's. Exit status: 0 after a stop, 2 when an option is wrong or the port is
    taken.
    """  # noqa: E501
    with ends_with(BAD_SETTINGS, ValueError, OSError, trace=True):
        access = read_access(host, tls_cert, tls_key, token_file, insecure=insecure)
        onward = open_upstream(upstream, upstream_ca) if upstream else None
        listener = take_port(host, port)
        if json_log:
            log_as_json()
    serve_edge(slm, onward, listener, access)


@serve_app.command()
def device(
    llm_address: LlmAddressOption = None,
    run: RunOption = None,
    cluster: ClusterOption = None,
    store: StoreOption = None,
    client: ClientOption = 0,
    host: HostOption = "127.0.0.1",
    port: PortOption = DEVICE_PORT,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Be asked under this name or address too; may be repeated.",
        ),
    ] = None,
    fail_without_llm: Annotated[
        bool,
        typer.Option(
            "--fail-without-llm",
            help="Where the LLM does not decide a token that it should, answer with 503 instead "
            "of going on alone.",
        ),
    ] = False,
    slm: Annotated[str | None, ModelOption] = None,
    queue: QueueOption = 64,
    threads: ThreadsOption = 1,
    tls_cert: CertificateOption = "",
    tls_key: KeyOption = "",
    token_file: TokenOption = "",
    insecure: InsecureOption = False,
    json_log: LogOption = False,
    overrides: OverridesOption = None,
) -> None:
    """Serve this device's text to programs and people until SIGTERM or Ctrl-C.

    Programs ask in the words of OpenAI's API (base URL http://127.0.0.1:8472/v1, as key the token
    of --token-file, or any), people on the page at http://127.0.0.1:8472. The small model writes,
    tokens that it is not sure of are asked of the large one. With --store, what came of each
    (uncertainty and whether it was right, never text) waits in FOLDER for the next round.

    - `fedhlm serve device`

    - `fedhlm serve device --run runs/2026-... --llm-address 10.0.0.5:8471`

    - `fedhlm serve device --llm-address 10.0.0.5:8471 --client 3 --store /var/lib/fedhlm -s learning=balanced`

    - `curl --json '{"model": "fedhlm", "prompt": "Shares of the airline"}' 127.0.0.1:8472/v1/completions`

    - `flower-supernode ... --node-config 'partition-id=3 feedback-store="/var/lib/fedhlm"'`

    The SuperNode then learns from these texts instead of a dataset's, and a new threshold is taken
    up without a restart. Settings of decoding, uncertainty, policy, verification and audits must
    be those of the run. On 127.0.0.1 whoever asks is answered, pages of other sites in a browser
    excepted. Exit status: 0 after a stop, 1 when folder or model cannot be used, 2 when a setting,
    the certificate or the token is wrong or the port is taken.
    """  # noqa: E501
    with ends_with(BAD_SETTINGS, ValueError, trace=True):
        # FEDHLM_LLM_TOKEN is what this device brings to the LLM, not what it asks of others.
        access = read_access(host, tls_cert, tls_key, token_file, insecure=insecure, environ={})
        hosts = allowed_hosts(host, allow_host or [])
        given: dict[str, object] = {"llm-address": llm_address, "slm": slm}
        if store is not None and run is None and cluster is None:
            settings, policy = collect_alone(given, overrides or []), None
        else:
            # Nobody learns from what is written without a store: what is learned comes from a run.
            given["initial-threshold"] = None
            chosen = choose_policy(given, overrides or [], run, cluster)
            settings, policy = chosen.settings, chosen.policy
    with (
        ends_with(FAILED, OSError, ValueError),
        ends_with(BAD_SETTINGS, SettingsError, trace=True),
    ):
        if json_log:
            log_as_json()
        # Taken before a model is loaded: a port in use is told at once.
        listener = take_port(host, port)
        with told_of_loading():
            link = reach_llm(settings, threads)
            texts = open_texts(settings, client, link, store, policy)
        serve_texts(texts, listener, queue, fail_without_llm, hosts, access)


serve_app.command(context_settings=FLOWERS_OWN)(supernode)
