"""Settings of learning: the policy's rule, its costs and guarantees, the federation."""

from __future__ import annotations

from typing import Annotated, Literal

from fedhlm_app.learning.rules import RULES
from fedhlm_app.settings.field import Group, OneOf, said, setting
from hlm.local_steps import LOCAL_METHODS


class LearningGroup(Group):
    """By which rule the policy learns, and what it may cost."""

    learning: Annotated[str, OneOf("auto", *RULES)] = setting(
        "auto",
        "rule by which the policy learns; auto: certified-high-probability, or, where a setting "
        "of gradients, privacy or the start asks for it, balanced (u-hlm: linear; learn-rounds: "
        "primal-dual)",
    )
    reduction: Literal["mean", "sum"] = setting(
        "mean", "over a client's tokens; sum is the paper's letter and overshoots at once"
    )
    gamma: float = setting(10.0, "steepness of the soft threshold", above=0, at_most=1e4)
    transmission_penalty: float = setting(
        0.01,
        "the paper's lambda, the price of sending a token at all; .01 as its Fig. 5 implies",
        at_least=0,
        at_most=1e4,
    )
    learning_rate: float = setting(
        0.0,
        "step size of the first round; 0: the rule's own, our choice (paper .02, balanced .1, "
        "primal-dual .5)",
        at_least=0,
        at_most=1e4,
    )
    learning_rate_decay: float = setting(
        1.0,
        "with a learning-rate: step size is learning-rate / (1 + decay * round), from round 0",
        at_least=0,
        at_most=1e4,
    )
    local_steps: int = setting(
        1,
        "gradient steps of a client in a round, or passes over its tokens with local-batch",
        unit="steps",
        at_least=1,
        at_most=10_000,
    )
    local_batch: int = setting(
        0,
        "tokens of one gradient step, so that clients with more tokens take more steps; 0: all",
        unit="tokens",
        at_least=0,
        at_most=1_000_000,
    )
    cost_transmit: float = setting(
        0.2, "balanced: cost of sending one token", unit="cost", at_least=0, at_most=1e9
    )
    cost_error: float = setting(
        1.0, "balanced: cost of keeping one wrong token", unit="cost", at_least=0, at_most=1e9
    )
    fidelity_budget: float = setting(
        0.05, "alpha, the largest risk the certified rules allow", above=0, below=1
    )
    confidence: float = setting(
        0.05, "delta, the chance that certified-high-probability fails", above=0, below=1
    )
    learn_rounds: int = setting(
        0,
        "first rounds, in which gradients learn; the later ones certify what they have learned; "
        "0: gradients learn in every round, and nothing is certified; auto: two fifths of all",
        unit="rounds",
        at_least=0,
        at_most=1_000_000,
    )
    calibration_rounds: int = setting(
        5,
        "rounds whose sums linear and, with given texts, the certified rules pool",
        unit="rounds",
        at_least=1,
        at_most=1_000_000,
    )
    line_threshold: Literal["risk-averse", "risk-prone"] = setting(
        "risk-averse", "linear: keep where the line expects no rejection, or no more than usual"
    )
    audit_rate: float = setting(
        0.0, "share of kept tokens that is verified anyway", at_least=0, at_most=1
    )
    personalisation: Literal["global", "cluster", "local", "shrunk"] = setting(
        "global", "whose threshold a client uses; shrunk: local, drawn to its cluster"
    )
    shrinkage: float = setting(
        100.0,
        "tokens (prompts in a certified rule) at which own and cluster weigh the same in shrunk",
        unit="tokens",
        at_least=0,
    )
    privacy: Literal["none", "local", "central"] = setting(
        "none", "noise on learned policies and on sums: none, on the device, or on the server"
    )
    privacy_clip: float = setting(
        0.05,
        "longest change of a policy that leaves a client, L2; sums are bounded by themselves",
        above=0,
        at_most=1e6,
    )
    privacy_noise: float = setting(
        1.0, "standard deviation of the noise over the sensitivity", above=0, at_most=1e6
    )
    privacy_delta: float = setting(
        1e-5, "delta of differential privacy, well below 1 / clients", above=0, below=1
    )

    router_hidden: int = setting(
        0, "units of the router's hidden layer; 0: logistic", unit="units", at_least=0, at_most=512
    )
    router_projection: int = setting(
        128,
        "columns the router sees of the hidden state, and of the draft's embedding; 0: none",
        unit="columns",
        at_least=0,
        at_most=8192,
    )
    router_rounds: int = setting(
        15,
        "first rounds, in which all tokens are escalated and a router learns from all of them",
        unit="rounds",
        at_least=1,
        at_most=1_000_000,
    )
    router_steps: int = setting(
        20,
        "gradient steps of a client's router in a round",
        unit="steps",
        at_least=1,
        at_most=10_000,
    )
    router_optimizer: Literal["sgd", "adam"] = setting(
        "sgd",
        "what a router's steps are in its first rounds: plain, or Adam's, whose moments begin "
        "anew each round",
    )
    router_learning_rate: float = setting(
        0.0,
        "step size of the router's first round; 0: the optimizer's own (sgd .05, adam .01)",
        at_least=0,
        at_most=1e3,
    )
    router_learning_rate_decay: float = setting(
        0.1,
        "the router's step size is its learning-rate / (1 + decay * round)",
        at_least=0,
        at_most=1e3,
    )
    router_penalty: float = setting(
        1e-3, "L2 penalty on the router's weights", at_least=0, at_most=1e3
    )


class FederationGroup(Group):
    """How replies are combined, and what happens to those that do not come."""

    strategy: Annotated[str, OneOf(*LOCAL_METHODS)] = setting(
        "fedavg", f"federated strategy of the clients' updates; {said(LOCAL_METHODS)}"
    )
    edge_rule: str = setting(
        "weighted-mean", "rule inside a cluster: mean by tokens, or one such as fedmedian or krum"
    )
    cloud_rule: str = setting(
        "unweighted-mean", "rule over the clusters: plain mean, or one such as fedmedian"
    )
    average_at: Literal["auto", "edge", "cloud"] = setting(
        "auto",
        "where a cluster's updates are averaged; auto: in its edge server, where there is one and "
        "the other settings let it",
    )
    proximal_mu: float = setting(
        0.1, "strategies with a pull: how strong it is", at_least=0, at_most=1e4
    )
    server_learning_rate: float = setting(
        1.0, "step of the server towards the aggregate", above=0, at_most=1e4
    )
    fraction_train: float = setting(1.0, "share of clients asked in a round", above=0, at_most=1)
    fraction_evaluate: float = setting(
        1.0, "share of clients asked in an evaluation", at_least=0, at_most=1
    )
    min_clients: int = setting(
        1, "a round with fewer good replies fails", unit="clients", at_least=1
    )
    max_unresolved: float = setting(
        0.05,
        "a run that leaves a larger share of its tokens unresolved, or whose large model never "
        "answers, fails; 1: never",
        at_least=0,
        at_most=1,
    )
    round_timeout: float = setting(
        300.0, "wait for a round's replies before it goes on without", unit="s", above=0
    )
