"""Settings of the job itself: its size, its models, its data."""

from __future__ import annotations

from typing import Annotated, Literal

from fedhlm_app import presets
from fedhlm_app.settings.field import Group, OneOf, setting

Dtype = Literal["float32", "bfloat16", "float16"]


class JobGroup(Group):
    """How large the run is and where it is written."""

    preset: Annotated[str, OneOf(*presets.PRESETS)] = setting(
        presets.PLAIN,
        "named settings to start from, which all others given overrule; "
        f"`fedhlm run` starts from {presets.DEFAULT}",
    )
    name: str = setting("fedhlm", "name of the run, part of its folder's name")
    run_dir: str = setting(
        "runs",
        "folder of the run folders; relative: to the caller's folder, in `flwr run` to ~/fedhlm",
    )
    resume: str = setting("", "run folder to continue from its last checkpoint; empty: start anew")
    seed: int = setting(0, "seed of everything drawn in the run", at_least=0, at_most=2**31 - 1)
    clients: int = setting(20, "simulated devices", unit="clients", at_least=1, at_most=1_000_000)
    clusters: int = setting(
        4,
        "edge clusters, at most one per client; if not given, fewer where there are fewer clients",
        unit="clusters",
        at_least=1,
    )
    cluster_by: Literal["round-robin", "by-partition", "random", "classifier", "profile"] = setting(
        "round-robin", "how a client gets its cluster: assigned, drawn, or learned"
    )
    recluster_every: int = setting(
        0, "learn clusters anew every so many rounds; 0: once", unit="rounds", at_least=0
    )
    profile_prompts: int = setting(
        32, "training texts that a client's profile is made of", unit="prompts", at_least=1
    )
    profile_rows: int = setting(
        32, "texts that a profile describes one by one", unit="rows", at_least=0, at_most=4096
    )
    profile_noise: float = setting(
        0.0, "noise on profiles over their sensitivity; 0: none", at_least=0, at_most=1e6
    )
    rounds: int = setting(30, "federated rounds", unit="rounds", at_least=1, at_most=1_000_000)
    tokens_per_round: int = setting(
        30, "tokens each client routes in a round", unit="tokens", at_least=1, at_most=1_000_000
    )
    tokens_per_prompt: int = setting(
        10, "tokens routed for one prompt", unit="tokens", at_least=1, at_most=1_000_000
    )
    prompt_tokens: int = setting(
        16,
        "longest prompt: of a text its start, of a chat the end",
        unit="tokens",
        at_least=1,
        at_most=1_000_000,
    )
    evaluate_every: int = setting(
        5, "evaluate on held-out prompts every so many rounds; 0: never", unit="rounds", at_least=0
    )
    evaluate_prompts: int = setting(
        4, "held-out prompts per client and evaluation", unit="prompts", at_least=1
    )
    workers: int = setting(
        0, "client processes at once in `fedhlm run`; 0: one per core", unit="processes", at_least=0
    )
    token_log: bool = setting(False, "write tokens.parquet, one row per routed token")
    token_texts: bool = setting(
        False,
        "the token log holds each token's text and prompts too, which leave the device for it",
    )
    trackers: str = setting(
        "",
        "names with commas between them that figures of rounds go to: mlflow, wandb; each needs "
        "its extra",
    )
    checkpoint: bool = setting(True, "save the server's state after every round, for resume")


class ModelGroup(Group):
    """Which models, where they run, and how the large one is shared."""

    slm: str = setting(
        "builtin",
        "small model of the devices: builtin, smollm2-small (the default for llm=smollm2), a "
        "folder, a .gguf file or a hub name",
    )
    llm: str = setting(
        "builtin",
        "large model of the server: builtin, smollm2, a folder, a .gguf file or a hub name",
    )
    device: str = setting("cpu", "where the small model runs: cpu, cuda, cuda:N, mps or auto")
    dtype: Dtype = setting("float32", "number format of the small model")
    llm_backend: str = setting(
        "engine",
        "what runs the large model: engine; engine:40 for passes of at least 40 ms as of a larger "
        "one; openai:URL#MODEL for a server that speaks OpenAI's API",
    )
    llm_device: str = setting("cpu", "where the large model runs: cpu, cuda, cuda:N, mps or auto")
    llm_dtype: Dtype = setting("float32", "number format of the large model")
    llm_address: str = setting(
        "",
        "host:port or http(s) URL of a served large model; empty: an actor inside the simulation",
    )
    llm_ca_file: str = setting(
        "", "PEM file of the authorities trusted for an https llm-address; empty: the system's"
    )
    llm_token_file: str = setting(
        "", "file with the served model's bearer token; empty: FEDHLM_LLM_TOKEN in the environment"
    )
    llm_sessions: int = setting(
        256, "prompts whose key-value cache the large model keeps", unit="sessions", at_least=1
    )
    llm_context: int = setting(
        256, "longest text the large model reads in one session", unit="tokens", at_least=2
    )
    llm_batch_wait_ms: float = setting(
        2.0,
        "longest wait of a request for others to batch with",
        unit="ms",
        at_least=0,
        at_most=1e4,
    )
    reproducible: bool = setting(
        True,
        "repeat bit for bit: the large model does not batch across clients, "
        "which changes results by rounding",
    )
    llm_timeout: float = setting(
        60.0, "wait for the large model before a token stays unresolved", unit="s", above=0
    )


class DataGroup(Group):
    """Which texts, and who gets them."""

    dataset: str = setting("builtin", "texts: builtin, a hub name, or a file or folder of them")
    dataset_split: str = setting("train", "split of a hub dataset")
    text_columns: str = setting(
        "",
        "columns joined to the text, comma separated, or one of chat messages; empty: the "
        "dataset's usual ones",
    )
    label_column: str = setting("", "column of the topic label; empty: the dataset's usual one")
    partition: Literal["iid", "dirichlet", "by-class"] = setting(
        "iid", "how items are dealt to the clients"
    )
    dirichlet_alpha: float = setting(
        1.0, "evenness of labels with partition=dirichlet; small is uneven", above=0, at_most=1e6
    )
    held_out_fraction: float = setting(
        0.2, "share of a client's items kept for evaluation", at_least=0, at_most=0.9
    )
    workload: Literal["generate", "score", "classify"] = setting(
        "generate", "generate text, score the next token of given text, or classify its topic"
    )
