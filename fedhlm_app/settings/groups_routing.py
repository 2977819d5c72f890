"""Settings of a token's way: decoding, uncertainty, policy, verification, the edge tier."""

from __future__ import annotations

from typing import Annotated, Literal

from clients.policies import POLICIES
from fedhlm_app.settings.field import Group, OneOf, said, setting
from hlm.measures import MEASURES
from hlm.peers.modes import PEER_MODES
from hlm.verifiers import VERIFIERS


class RoutingGroup(Group):
    """How a draft is made, judged, and decided when it is escalated."""

    decoding: Literal["greedy", "sampled"] = setting("greedy", "how a token is chosen")
    temperature: float = setting(
        1.0, "divides the logits of both models in sampled decoding", above=0, at_most=100
    )
    top_p: float = setting(
        1.0, "share of probability kept in sampled decoding; 1: all", above=0, at_most=1
    )
    uncertainty: Annotated[str, OneOf(*MEASURES)] = setting(
        "closed-form", f"how unsure the small model is of its draft; {said(MEASURES)}"
    )
    uncertainty_samples: int = setting(
        20,
        "draws of disagreement and temperature-sweep",
        unit="samples",
        at_least=1,
        at_most=10_000,
    )
    uncertainty_temperature: float = setting(
        1.0, "softens probabilities before uncertainty is taken", above=0, at_most=100
    )
    policy: Annotated[str, OneOf(*POLICIES)] = setting(
        "threshold", f"which drafts are kept; {said(POLICIES)}"
    )
    random_share: float = setting(
        0.5, "share of tokens escalated with policy=random", at_least=0, at_most=1
    )
    initial_threshold: float = setting(
        0.5, "first threshold: a draft of at most this uncertainty is kept", at_least=-1, at_most=1
    )
    verification: Annotated[str, OneOf("auto", *VERIFIERS)] = setting(
        "auto",
        "how an escalated draft is decided; auto: greedy, or coupled in sampled decoding; "
        + said(VERIFIERS),
    )
    escalation: Literal["auto", "token", "span"] = setting(
        "auto",
        "what an uncertain draft asks for in generation; token: one token; span: the large model "
        "goes on writing until the device takes the text back; auto: span, but token where "
        "verification or learning need one at a time",
    )
    llm_pace: float = setting(
        40.0,
        "time of the large model for a token, by which spans are taken back",
        unit="ms",
        above=0,
    )
    slm_pace: float = setting(
        5.0, "time of a device for a draft, by which spans are taken back", unit="ms", at_least=0
    )
    truncation_k: int = setting(
        0,
        "most likely tokens that truncated sends; 0: the k* rule, by U-HLM's line for its "
        "own pair of models",
        unit="tokens",
        at_least=0,
    )
    theta_tv: float = setting(0.1, "total variation the k* rule may lose", above=0, at_most=1)
    free_feedback: bool = setting(True, "the server scores kept tokens it reads, a byte for each")


class EdgeGroup(Group):
    """What cache, peers and neighbouring clusters may resolve before the large model is asked."""

    cache_mode: Literal["off", "paper", "context"] = setting(
        "off",
        "token cache on the device: none; as written, of all tokens kept or received, by token "
        "embedding; or of the large model's tokens, by context",
    )
    cache_size: int = setting(
        1024, "entries of a device's token cache", unit="entries", at_least=1, at_most=10_000_000
    )
    peer_mode: Annotated[str, OneOf("off", *PEER_MODES)] = setting(
        "off", f"peers at the edge; off: none; {said(PEER_MODES)}"
    )
    similarity: float = setting(
        0.9, "cosine to the peers' centroid that accepts a draft", at_least=-1, at_most=1
    )
    context_gate: float = setting(
        0.98, "cosine of contexts from which a peer's entry counts", at_least=-1, at_most=1
    )
    reuse_gate: float = setting(
        0.995,
        "cosine of contexts from which an entry may replace another draft",
        at_least=-1,
        at_most=1,
    )
    sketch_words: int = setting(
        1,
        "length of a context's key on its way to the edge",
        unit="words of 64 bits",
        at_least=1,
        at_most=16,
    )
    edge_addresses: str = setting(
        "",
        "host:port or http(s) URL of each cluster's served edge server, in the clusters' order, "
        "with commas; empty: actors inside the simulation",
    )
    inter_cluster: bool = setting(False, "ask neighbouring clusters before the large model")
    opportunistic: bool = setting(True, "ask peers only where the expected saving pays (eq. 13)")
    cost_unit: Literal["ms", "bytes"] = setting("ms", "unit of the costs that eq. 13 compares")
    edge_round_trip: float = setting(5.0, "round trip to the edge", unit="ms", at_least=0)
    edge_rate: float = setting(100.0, "link to the edge", unit="Mbit/s", above=0)
    llm_round_trip: float = setting(60.0, "round trip to the large model", unit="ms", at_least=0)
    llm_rate: float = setting(1.0, "link to the large model", unit="Mbit/s", above=0)
    cost_wrong_hit: float = setting(
        0.0, "cost of a wrong hit in the unit of cost-unit; 0: eq. 13 as written", at_least=0
    )
    max_false_hits: float = setting(
        1.0, "share of wrong hits that closes a tier; 1: never", at_least=0, at_most=1
    )
