"""Rounds that learn from served texts: what counts, what comes next, and whole runs of it."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord

from clients.learning.feedback import Feedback
from clients.learning.feedback_store import FeedbackStore
from clients.records import Traffic
from fedhlm_app.client import rounds as client_rounds
from fedhlm_app.client.feedback_folder import (
    FeedbackFolder,
    ServedPolicy,
    TextNote,
    digest,
    made_with,
)
from fedhlm_app.client.from_store import next_policy, told_since
from fedhlm_app.client.routed import Routed, figures
from fedhlm_app.client.take_back import RUN_COUNTS
from fedhlm_app.learning.gradients import initial_policy, learn_locally
from fedhlm_app.learning.rules import sums_rule
from fedhlm_app.results.runs import RunFolder
from fedhlm_app.serve_device.texts import ServedTexts
from fedhlm_app.server.rounds import Federation
from fedhlm_app.transport.transports import DirectTransport
from hlm.risk import ESCALATE_ALL, RiskSums
from tests.fedhlm_app.in_process import LocalGrid, Runner, settings_of
from tests.fedhlm_app.serve_device.devices import written

HERE = {"threshold": np.array([0.4])}


@pytest.fixture
def folder(tmp_path):
    return FeedbackFolder(tmp_path)


def store(folder, settings, tokens=4, policy=HERE, read=False, seed=0) -> None:
    """One text of `tokens` tokens, the first of them kept and unknown unless read."""
    rng = np.random.default_rng(seed)
    kept = np.arange(tokens) < tokens // 2
    feedback = Feedback.create(
        u=rng.random(tokens), beta=rng.integers(0, 2, tokens), kept=kept, known=~kept | read
    )
    sums = {**figures(Routed([], Traffic()), settings), "tokens": tokens, "local": int(kept.sum())}
    note = TextNote(made_with(settings), digest(policy), read, sums)
    with FeedbackStore(folder.store_file) as opened:
        opened.append(feedback, note.to_json())


def test_every_text_is_told_of_once(folder):
    settings = settings_of(learning="balanced")
    store(folder, settings, 4)
    store(folder, settings, 3, seed=1)
    first = told_since(folder, settings, HERE, 0)
    assert len(first.feedback) == 7 and first.newest == 2
    assert (first.figures["tokens"], first.figures["local"]) == (7, 3)
    store(folder, settings, 5, seed=2)
    second = told_since(folder, settings, HERE, first.newest)
    assert second.feedback.prompt.tolist() == [3] * 5 and second.newest == 3
    third = told_since(folder, settings, HERE, second.newest)
    assert len(third.feedback) == 0 == third.figures["tokens"] and third.newest == 3


def test_unknown_betas_stay_unknown(folder):
    settings = settings_of(learning="balanced")
    store(folder, settings, 6)
    told = told_since(folder, settings, HERE, 0)
    assert told.feedback.known.tolist() == [False] * 3 + [True] * 3
    step = learn_locally(settings, HERE["threshold"], told.feedback, {"round": 1}, {})
    assert step.examples == 3


def test_a_deleted_store_counts_from_one_again(folder):
    settings = settings_of(learning="balanced")
    store(folder, settings)
    assert len(told_since(folder, settings, HERE, 17).feedback) == 4


def test_a_round_takes_its_tokens_and_no_more(folder):
    settings = settings_of(learning="balanced")  # 20 tokens a round
    for seed in range(5):
        store(folder, settings, 6, seed=seed)
    told = told_since(folder, settings, HERE, 0)
    assert told.feedback.prompt.tolist() == [2] * 2 + [3] * 6 + [4] * 6 + [5] * 6
    assert told.newest == 5 and told.figures["tokens"] == 30


def test_texts_made_otherwise_are_left_out_and_named(folder, caplog):
    settings = settings_of(learning="balanced")
    other = settings_of(learning="balanced", uncertainty="entropy")
    store(folder, other)
    with pytest.raises(ValueError, match="uncertainty = 'entropy' there and 'closed-form' here"):
        told_since(folder, settings, HERE, 0)
    store(folder, settings)
    told = told_since(folder, settings, HERE, 0)
    assert set(told.feedback.prompt.tolist()) == {2} and told.newest == 2
    assert told.figures["tokens"] == 4
    with pytest.raises(ValueError, match="workload = 'score'"):
        told_since(folder, settings_of(workload="score"), HERE, 0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"learning": "balanced"}, set()),
        # A line may be drawn through any text of which everything is known.
        ({"learning": "linear"}, {2, 3}),
        # A guarantee about generated text is about text of the threshold itself.
        ({"learning": "certified"}, {3}),
        ({"learning": "certified-high-probability"}, {3}),
        ({"learning": "linear", "audit_rate": 0.5}, {1, 2, 3, 4}),
        ({"learning": "certified", "audit_rate": 0.5}, {3, 4}),
    ],
)
def test_what_a_guarantee_counts(folder, changes, expected):
    settings = settings_of(**changes)
    elsewhere = {"threshold": np.nextafter(HERE["threshold"], 1)}
    store(folder, settings, policy=elsewhere)
    store(folder, settings, policy=elsewhere, read=True)
    store(folder, settings, policy=HERE, read=True)
    store(folder, settings, policy=HERE)
    told = told_since(folder, settings, HERE, 0)
    assert set(told.counted.prompt.tolist()) == expected
    assert set(told.feedback.prompt.tolist()) == {1, 2, 3, 4}


def test_a_guarantee_counts_whole_texts(folder):
    settings = settings_of(learning="certified")
    for seed in range(5):
        store(folder, settings, 6, read=True, seed=seed)
    counted = told_since(folder, settings, HERE, 0).counted
    # As many as a round asks for, however long they are: length tells of risk.
    assert sums_rule(settings).prompts == 4
    assert counted.prompt.tolist() == [2] * 6 + [3] * 6 + [4] * 6 + [5] * 6
    line = told_since(folder, settings_of(learning="linear"), HERE, 0).counted
    assert line.prompt.tolist() == [3] * 6 + [4] * 6 + [5] * 6


@pytest.mark.parametrize(
    ("changes", "server_round", "calibrating", "threshold", "read"),
    [
        ({"learning": "balanced"}, 1, False, 0.4, False),
        ({"learning": "linear"}, 1, True, 0.4, True),
        ({"learning": "linear"}, 1, False, 0.4, False),
        ({"learning": "linear"}, 4, True, 0.4, False),
        ({"learning": "certified"}, 1, True, 0.4, True),
        ({"learning": "certified", "audit_rate": 0.2}, 1, True, 0.4, False),
        # After the last round nobody tests a candidate any more.
        ({"learning": "certified"}, 4, True, ESCALATE_ALL, False),
        ({"learning": "certified"}, 4, False, 0.4, False),
        # A router learns from all tokens first.
        ({"policy": "router", "learning": "balanced", "router_rounds": 3}, 1, False, -1.0, False),
        ({"policy": "router", "learning": "balanced", "router_rounds": 3}, 3, False, 0.4, False),
    ],
)
def test_what_a_device_serves_with_next(changes, server_round, calibrating, threshold, read):
    settings = settings_of(rounds=4, **changes)
    policy = next_policy(settings, HERE, server_round, 9, 6, calibrating=calibrating)
    assert policy.arrays == {"threshold": [threshold]}
    assert HERE["threshold"] == 0.4
    assert (policy.read, policy.server_round) == (read, server_round)
    assert (policy.consumed, policy.consumed_before) == (9, 6)
    assert policy.made == made_with(settings)


def test_a_policy_comes_back_bit_for_bit(folder):
    assert folder.read_policy() is None
    rng = np.random.default_rng(0)
    arrays = {"threshold": rng.random(1), "router": rng.standard_normal(50)}
    counts = [0.5, 1.0, 2.0, 3.0, 4.0, 5.0]
    policy = ServedPolicy(arrays, 3, True, 12, 8, made_with(settings_of()), counts)
    folder.write_policy(policy)
    found = folder.read_policy()
    assert digest(found.arrays) == digest(arrays)
    assert list(found.arrays) == list(arrays) and replace(found, arrays=arrays) == policy
    assert [path.name for path in folder.path.iterdir()] == ["policy.json"]


def test_whoever_reads_while_a_policy_is_written_sees_one_whole(folder):
    policies = [ServedPolicy({"router": np.full(2000, value)}, int(value)) for value in (1.0, 2.0)]
    folder.write_policy(policies[0])
    done = threading.Event()

    def write() -> None:
        for turn in range(200):
            folder.write_policy(policies[turn % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        found = folder.read_policy()
        assert (found.arrays["router"] == found.server_round).all()
    writer.join()


# --- whole runs ------------------------------------------------------------------------------


class Deployed:
    """Devices that serve, and a federation that learns from them, in this process."""

    def __init__(self, path, monkeypatch, texts=4, **changes) -> None:
        runner = Runner(monkeypatch)
        self.settings = settings_of(**changes).model_copy(update={"run_dir": str(path / "runs")})
        self.texts = texts
        self.served = []
        for client in range(self.settings.clients):
            (path / str(client)).mkdir()
            folder = FeedbackFolder(path / str(client))
            link = DirectTransport(runner.service)
            self.served.append(ServedTexts(self.settings, client, link, folder))
        run_folder = RunFolder.create(self.settings, {})
        self.grid = ServingGrid(self, runner.service)
        for client, context in enumerate(self.grid.contexts.values()):
            context.node_config["feedback-store"] = str(path / str(client))
        self.answers = []
        self.federation = Federation(self.settings, None, run_folder, None)
        self.federation.run(self.grid)
        self.rounds = run_folder.metrics()
        self.summary = run_folder.summary()

    def serve(self, server_round: int) -> None:
        """Texts that are asked for before a round."""
        words = ("Shares", "The minister", "A striker", "Researchers")
        for device in self.served:
            for turn in range(self.texts):
                prompt = f"{words[turn % 4]} in {server_round}"
                self.answers.append((server_round, written(device, prompt, 5)))

    def trained(self, server_round: int) -> list:
        """Metrics of a round's training replies."""
        found = [next(iter(reply.content.metric_records.values())) for reply in self.grid.replies]
        return [m for m in found if m.get("round") == server_round and "threshold" in m]


class ServingGrid(LocalGrid):
    def __init__(self, deployed, service) -> None:
        super().__init__(deployed.settings, service)
        self.deployed = deployed

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        if messages[0].metadata.message_type == "train":
            self.deployed.serve(messages[0].content.config_records["config"]["round"])
        return super().send_and_receive(messages, timeout=timeout)


def test_a_run_learns_from_what_was_served(tmp_path, monkeypatch):
    deployed = Deployed(tmp_path, monkeypatch, rounds=3, learning="balanced", clients=2, clusters=1)
    thresholds = [line["threshold"]["global"] for line in deployed.rounds]
    assert len({0.5, *thresholds}) == 4
    # What a round arrived at is what the texts after the next message are made with.
    for answers, expected in ((1, 0.5), (2, 0.5), (3, thresholds[0])):
        assert {a.threshold for r, a in deployed.answers if r == answers} == {expected}
    for served in deployed.served:
        assert served.folder.read_policy().arrays == {"threshold": [thresholds[1]]}
    # Each round tells of its own texts, once.
    for number, line in enumerate(deployed.rounds, 1):
        made = [a for r, a in deployed.answers if r == number]
        assert line["tokens"] == sum(len(answer.tokens) for answer in made)
        assert line["bytes"]["uplink"] == sum(answer.routed.traffic.uplink for answer in made)
    assert deployed.summary["tokens"] == sum(len(a.tokens) for _, a in deployed.answers)
    # The first step, by hand: eq. 7's mean over the two devices.
    steps = []
    for served in deployed.served:
        with FeedbackStore(served.folder.store_file) as opened:
            feedback, _ = opened.read()
        first = feedback.select(feedback.prompt <= 4)
        start = initial_policy(deployed.settings)["threshold"]
        steps.append(learn_locally(deployed.settings, start, first, {"round": 1}, {}))
    weights = [step.examples for step in steps]
    mean = np.average([step.result.policy[0] for step in steps], weights=weights)
    assert thresholds[0] == pytest.approx(mean, abs=1e-12)


def test_a_round_without_new_texts_changes_nothing(tmp_path, monkeypatch):
    class Once(Deployed):
        def serve(self, server_round: int) -> None:
            if server_round == 1:
                super().serve(server_round)

    deployed = Once(tmp_path, monkeypatch, rounds=2, learning="balanced", clients=2, clusters=1)
    first, second = deployed.rounds
    assert first["threshold"]["global"] != 0.5
    assert second["threshold"]["global"] == first["threshold"]["global"]
    assert second["weights"] == {"0": 0, "1": 0}
    assert (second["tokens"], second["failed"], second["refused"]) == (0, {}, {})


def test_an_evaluation_brings_the_last_threshold(tmp_path, monkeypatch):
    deployed = Deployed(
        tmp_path, monkeypatch, rounds=2, learning="balanced", clients=2, clusters=1,
        evaluate_every=1,
    )  # fmt: skip
    thresholds = [line["threshold"]["global"] for line in deployed.rounds]
    assert {a.threshold for r, a in deployed.answers if r == 2} == {thresholds[0]}
    for served in deployed.served:
        policy = served.folder.read_policy()
        assert policy.arrays == {"threshold": [thresholds[1]]}
        # Learning goes on from here if the run is resumed.
        assert policy.consumed == 2 * deployed.texts
    # Nothing was evaluated, and no report says that it was.
    assert all("evaluation" not in line for line in deployed.rounds)


@pytest.mark.parametrize("personalisation", ["local", "cluster"])
def test_devices_serve_with_what_personalisation_gives_them(tmp_path, monkeypatch, personalisation):
    deployed = Deployed(
        tmp_path, monkeypatch, rounds=2, learning="balanced", clients=2, clusters=2,
        personalisation=personalisation,
    )  # fmt: skip
    # In two clusters of one client both mean the client's own; only `local` needs no message
    # more to know it.
    which = -1 if personalisation == "local" else -2
    for client, served in enumerate(deployed.served):
        own = deployed.rounds[which]["threshold"]["clients"][str(client)]
        assert served.folder.read_policy().arrays == {"threshold": [own]}


def test_a_certified_run_counts_texts_of_the_threshold_under_test(tmp_path, monkeypatch):
    deployed = Deployed(
        tmp_path, monkeypatch, rounds=4, learning="certified", fidelity_budget=0.6, clients=2,
        clusters=1,
    )  # fmt: skip
    trained = [deployed.trained(server_round) for server_round in (1, 2, 3, 4)]
    prompts = [
        [int(RiskSums.from_vector(np.array(one["risk-curve"], float)).prompts) for one in round_]
        for round_ in trained
    ]
    tried = [{one["threshold"] for one in round_} for round_ in trained]
    # The careful threshold passes, the texts before round 2 are still its own, and those before
    # round 3 are the first of the candidate.
    assert tried[0] == {ESCALATE_ALL}
    assert tried[1] == tried[2] != tried[0]
    assert prompts[:3] == [[4, 4], [0, 0], [4, 4]]
    assert {answer.threshold for r, answer in deployed.answers if r == 3} == tried[1]
    # Nobody will test what is under test at the end.
    for served in deployed.served:
        assert served.folder.read_policy().arrays == {"threshold": [ESCALATE_ALL]}


def test_served_texts_tell_when_to_take_back_and_hear_of_it(tmp_path, monkeypatch):
    rules = []
    take_back = ServedTexts.take_up_policy
    monkeypatch.setattr(
        ServedTexts, "take_up_policy", lambda one: take_back(one) or rules.append(one.policy)
    )
    deployed = Deployed(
        tmp_path, monkeypatch, rounds=3, learning="balanced", escalation="span", clients=2,
        clusters=1,
    )  # fmt: skip
    told = [deployed.trained(number) for number in (1, 2, 3)]
    sums = [[sum(one[name] for one in round_) for name in RUN_COUNTS] for round_ in told]
    assert sum(sums[0]) == deployed.rounds[0]["tokens"]
    assert deployed.federation.progress.take_back == sums[2]
    for served in deployed.served:
        # The last message brought the counts of the round before.
        assert served.folder.read_policy().take_back == sums[1]
    assert rules[-1].take_back == sums[0]


def test_of_many_served_drafts_a_rounds_tokens_count(folder):
    settings = settings_of(learning="balanced", escalation="span")  # 20 tokens a round
    counts = dict(zip(RUN_COUNTS, [4, 6, 10, 20, 0, 40], strict=True))
    sums = {**figures(Routed([], Traffic()), settings), **counts}
    note = TextNote(made_with(settings), digest(HERE), False, sums)
    feedback = Feedback.create(u=np.zeros(1), beta=np.zeros(1), kept=np.ones(1, bool))
    with FeedbackStore(folder.store_file) as opened:
        opened.append(feedback, note.to_json())
    found = told_since(folder, settings, HERE, 0).figures
    assert [found[name] for name in RUN_COUNTS] == [1, 1.5, 2.5, 5, 0, 10]
    assert [told_since(folder, settings, HERE, 1).figures[name] for name in RUN_COUNTS] == [0] * 6


def test_a_line_is_drawn_through_what_was_read(tmp_path, monkeypatch):
    deployed = Deployed(
        tmp_path, monkeypatch, rounds=3, learning="linear", calibration_rounds=2, clients=2,
        clusters=1,
    )  # fmt: skip
    thresholds = [line["threshold"]["global"] for line in deployed.rounds]
    assert thresholds[0] != 0.5
    assert thresholds[1] == thresholds[2]
    with FeedbackStore(deployed.served[0].folder.store_file) as opened:
        _, lines = opened.read()
    assert [TextNote.from_json(line).read for line in lines.values()] == [True] * 12
    assert not deployed.served[0].folder.read_policy().read


def test_a_router_learns_from_served_texts(tmp_path, monkeypatch):
    deployed = Deployed(
        tmp_path, monkeypatch, rounds=2, policy="router", learning="balanced", router_rounds=1,
        clients=2, clusters=1,
    )  # fmt: skip
    # The first round's texts were all escalated, so that all of their tokens tell.
    assert {answer.stages["local"] for r, answer in deployed.answers if r == 1} == {0}
    first = deployed.rounds[0]
    assert sum(first["weights"].values()) == first["tokens"]
    start = initial_policy(deployed.settings)
    assert not np.array_equal(first["policy"]["router"], start["router"])
    served = deployed.served[0].folder.read_policy().arrays
    assert {name: value.tolist() for name, value in served.items()} == first["policy"]


def test_a_resumed_run_goes_on_behind_what_was_learned(folder, tmp_path):
    context = next(iter(LocalGrid(settings_of(), None).contexts.values()))
    folder.write_policy(ServedPolicy(HERE, 3, consumed=8, consumed_before=5))
    new, resumed = settings_of(), settings_of(resume=str(tmp_path))
    accepted, lost = ConfigRecord({"accepted-round": 3}), ConfigRecord({"accepted-round": 2})
    assert client_rounds._bookmark(folder, new, accepted, context) == 0
    assert client_rounds._bookmark(folder, resumed, accepted, context) == 8
    assert client_rounds._bookmark(folder, resumed, lost, context) == 5
    kept = {"text": 11, "round": 3, "text-of-round": 14}
    context.state[client_rounds.BOOKMARK] = MetricRecord(kept)
    assert client_rounds._bookmark(folder, resumed, accepted, context) == 14
    assert client_rounds._bookmark(folder, resumed, lost, context) == 11


def test_texts_of_a_reply_that_was_lost_are_learned_from_in_the_next_round(tmp_path, monkeypatch):
    class Lossy(ServingGrid):
        def send_and_receive(self, messages, *, timeout=None):
            replies = super().send_and_receive(messages, timeout=timeout)
            config = messages[0].content.config_records.get("config", {})
            if config.get("round") == 2 and messages[0].metadata.message_type == "train":
                replies = [r for r in replies if r.metadata.src_node_id != 100]
            return replies

    monkeypatch.setitem(globals(), "ServingGrid", Lossy)
    deployed = Deployed(
        tmp_path, monkeypatch, texts=2, rounds=3, learning="balanced", clients=2, clusters=1
    )
    assert list(deployed.rounds[1]["failed"]) == ["0"]
    tokens = [sum(len(a.tokens) for r, a in deployed.answers if r == n) for n in (1, 2, 3)]
    first, second, third = deployed.rounds
    assert first["tokens"] == tokens[0]
    assert second["tokens"] + third["tokens"] == tokens[1] + tokens[2]
    assert third["weights"]["0"] > third["weights"]["1"]


def test_profiles_need_texts(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="cluster-by = 'profile': a device with feedback-store"):
        Deployed(tmp_path, monkeypatch, learning="balanced", cluster_by="profile")
