"""Strategies of the settings, run on clients of unequal size: where do they differ from FedAvg?"""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from clients.learning.feedback import Feedback
from fedhlm_app.learning.gradients import initial_policy, learn_locally
from fedhlm_app.server.strategy import build_of
from fedhlm_app.settings import Settings, advice
from strategies import AssignedClusters

TOKENS = [4, 9, 23, 30]


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def _settings(**changes: object) -> Settings:
    given = {"learning": "balanced", "clients": 4, "clusters": 2, "rounds": 4, **changes}
    named = {k.replace("_", "-"): v for k, v in given.items()}
    # The clients here count no drafts, which streams would ask of them.
    return Settings.from_sources({"escalation": "token", **named}, {})


class Grid:
    """Four clients whose feedback never changes; SCAFFOLD's variate is kept as it was sent."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        rng = np.random.default_rng(3)
        self.feedback = []
        for client, tokens in enumerate(TOKENS):
            u = rng.random(tokens)
            wrong = (rng.random(tokens) < u * (1 + client) / 4).astype(float)
            self.feedback.append(Feedback.create(u, wrong, kept=u < 0.5))

    def get_node_ids(self) -> list[int]:
        return [0, 1, 2, 3]

    def send_and_receive(self, messages: list[Message], *, timeout: float) -> list[Message]:
        return [self._reply(message) for message in messages]

    def _reply(self, message: Message) -> Message:
        client = message.metadata.dst_node_id
        config = message.content.config_records["config"]
        arrays = {k: v.numpy() for k, v in message.content.array_records["arrays"].items()}
        step = learn_locally(
            self.settings,
            arrays["threshold"],
            self.feedback[client],
            dict(config),
            arrays,
        )
        reply = {"threshold": step.result.policy, **step.result.arrays}
        metrics = {
            "num-examples": step.examples,
            "round": int(config["round"]),  # type: ignore[call-overload]
            "client": client,
            "local-steps": step.result.steps,
        }
        content = RecordDict(
            {
                "arrays": ArrayRecord({name: Array(value) for name, value in reply.items()}),
                "metrics": MetricRecord(metrics),
            }
        )
        return Message(content, reply_to=message)


def _final(settings: Settings) -> float:
    clusters = AssignedClusters({node: node for node in range(4)}, [0, 0, 1, 1])
    strategy = build_of(
        settings.model_copy(update={"evaluate_every": 0}), clusters, lambda record: None
    )
    start = ArrayRecord({name: Array(a) for name, a in initial_policy(settings).items()})
    strategy.start(Grid(settings), start, num_rounds=settings.rounds)  # type: ignore[arg-type]
    return float(strategy.policy[0])


@pytest.mark.parametrize("strategy", ["fedprox", "fednova"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"local_steps": 5},
        {"local_batch": 4},
        {"local_batch": 30},
        {"local_steps": 3, "local_batch": 8},
        {"local_steps": 5, "proximal_mu": 0},
    ],
)
def test_a_strategy_that_is_fedavg_says_so_and_no_other(
    strategy: str, changes: dict[str, object]
) -> None:
    plain = _final(_settings(strategy="fedavg", **changes))
    chosen = _settings(strategy=strategy, **changes)
    same = abs(_final(chosen) - plain) < 1e-12
    said = advice(chosen)
    assert bool(said) == same
    assert all(f"'strategy' = '{strategy}' is fedavg" in line for line in said)


def test_one_step_leaves_scaffold_no_drift_to_correct() -> None:
    (said,) = advice(_settings(strategy="scaffold"))
    assert "equal weights" in said and "local-steps" in said
    assert advice(_settings(strategy="scaffold", local_steps=2)) == []
    assert advice(_settings(strategy="fedavg")) == []
    router = {"policy": "router", "learning": "balanced", "router_rounds": 1}
    assert advice(_settings(strategy="fedprox", **router)) == []
    (said,) = advice(_settings(strategy="fednova", **router))
    assert "'router-steps' = 20" in said


def test_a_client_with_more_tokens_takes_more_steps() -> None:
    settings = _settings(strategy="fednova", local_steps=2, local_batch=8)
    grid = Grid(settings)
    policy = initial_policy(settings)["threshold"]
    steps = [
        learn_locally(settings, policy, feedback, {"round": 1}, {}).result.steps
        for feedback in grid.feedback
    ]
    assert steps == [2, 4, 6, 8]
