"""Clusters of a run: profiles asked for, refused, late clients, clusters learned anew."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from clients.learning.profile import Profile
from clients.learning.profile_making import make_profile
from fedhlm_app.client import profiles
from fedhlm_app.client.profiles import PROFILE, profile_settings
from fedhlm_app.hosting import edge as edge_hosting
from fedhlm_app.server import roster
from fedhlm_app.server.cluster_report import true_groups
from fedhlm_app.server.clusters import Clusters
from fedhlm_app.settings import Settings, SettingsError
from hlm.state import state_from_bytes, state_to_bytes
from servers.edge.actor import EdgeActor
from strategies.clustering.learned import LearnedClusters


def _in_process():
    if "in_process" not in sys.modules:
        path = Path(__file__).parents[1].joinpath("in_process.py")
        spec = importlib.util.spec_from_file_location("in_process", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules["in_process"] = module
        spec.loader.exec_module(module)
    return sys.modules["in_process"]


in_process = _in_process()


def settings_of(**changes) -> Settings:
    given = {"clients": 8, "clusters": 2, "cluster-by": "profile", "rounds": 6}
    given |= {key.replace("_", "-"): value for key, value in changes.items()}
    return Settings.from_sources(given, {})


def profile_of(settings: Settings, client: int, group: int, release: int = 0) -> np.ndarray:
    """Profile of a client whose texts are made of the ten tokens of its group."""
    agreed = profile_settings(settings)
    generator = np.random.default_rng([client, release])
    sketch = np.random.default_rng(5).normal(scale=0.1, size=(40, agreed.dims))
    texts = [generator.integers(10 * group, 10 * group + 10, 30) for _ in range(20)]
    entropies = [generator.uniform(0.2, 0.6, 30) for _ in texts]
    made = make_profile(texts, entropies, sketch, agreed, generator)
    return made.to_array(agreed)


class Nodes:
    """A grid of nodes 100, 101, ... that answer queries as clients 0, 1, ... would."""

    def __init__(self, settings: Settings, present=None) -> None:
        self.settings = settings
        clients = range(settings.clients) if present is None else present
        self.clients = {100 + client: client for client in clients}
        self.groups = {client: client // 2 % 2 for client in range(settings.clients)}
        self.profiles: dict[int, object] = {}
        self.silent: set[int] = set()
        self.broken: set[int] = set()
        self.asked: list[tuple[int, int | None]] = []
        self.timeouts: list[float] = []

    def get_node_ids(self):
        return list(self.clients)

    def send_and_receive(self, messages, *, timeout=None):
        self.timeouts.append(timeout)
        return [reply for message in messages if (reply := self._answer(message)) is not None]

    def _answer(self, message: Message) -> Message | None:
        client = self.clients[message.metadata.dst_node_id]
        release = profiles.requested(message)
        self.asked.append((client, release))
        if client in self.silent:
            return None
        if client in self.broken:
            return Message(Error(code=0, reason="boom"), reply_to=message)
        content = RecordDict({"metrics": MetricRecord({"client": client})})
        if release is not None:
            array = self.profiles.get(client)
            if array is None:
                array = profile_of(self.settings, client, self.groups[client], release)
            content[PROFILE] = ArrayRecord({PROFILE: Array(np.asarray(array))})
        return Message(content, reply_to=message)

    def profile_queries(self) -> list[tuple[int, int]]:
        return [(client, release) for client, release in self.asked if release is not None]


class Strategy:
    """Takes down what it is told to go on with."""

    def __init__(self) -> None:
        self.calls: list[dict[int, int] | None] = []
        self.cluster_map = None

    def recluster(self, cluster_map, members=None) -> None:
        self.cluster_map = cluster_map
        self.calls.append(members)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(roster, "INTRODUCTION_SECONDS", 0.0)
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def introduced(settings: Settings, nodes: Nodes) -> tuple[Clusters, Strategy]:
    clusters, strategy = Clusters(settings), Strategy()
    clusters.introduce(nodes, strategy)
    return clusters, strategy


@pytest.mark.parametrize("method", ["profile", "classifier"])
def test_clients_that_speak_alike_come_together(method):
    settings = settings_of(cluster_by=method)
    nodes = Nodes(settings)
    clusters, strategy = introduced(settings, nodes)
    found = clusters.assignment
    assert found[0] == found[1] == found[4] == found[5]
    assert found[2] == found[3] == found[6] == found[7] != found[0]
    assert strategy.cluster_map is clusters.map
    assert strategy.calls == [dict(enumerate(found))]
    assert clusters.map.clusters_of([100, 102]) == [found[0], found[2]]
    length = profile_settings(settings).length
    assert 8 * 4 * length < clusters.bytes < 8 * (4 * length + 256)
    assert clusters.epsilon is None


def test_order_of_nodes_does_not_matter():
    settings = settings_of(clusters=3)
    one, _ = introduced(settings, Nodes(settings))
    other, _ = introduced(settings, Nodes(settings, reversed(range(8))))
    assert one.assignment == other.assignment


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("round-robin", [0, 1, 0, 1, 0, 1, 0, 1]),
        ("assigned", [0, 1, 0, 1, 0, 1, 0, 1]),
        ("by-partition", [0, 0, 0, 0, 1, 1, 1, 1]),
    ],
)
def test_assigned_clusters_need_no_profile(by, expected):
    settings = settings_of(cluster_by=by)
    nodes = Nodes(settings)
    clusters, strategy = introduced(settings, nodes)
    assert clusters.assignment == expected
    assert nodes.profile_queries() == [] and strategy.calls == [] and clusters.bytes == 0
    assert not clusters.renew(1, strategy)


def test_random_clusters_are_even_and_follow_the_seed():
    found = [Clusters(settings_of(cluster_by="random", seed=seed)).assignment for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert sorted(found[0]) == [0] * 4 + [1] * 4


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.full(1142, np.nan, np.float32), "finite"),
        (np.zeros(7, np.float32), "shape"),
        (np.full(1142, 1e30, np.float32), "version"),
        (np.zeros(100_000, np.float32), "bytes"),
        (np.zeros(1142, np.int32), "dtype"),
    ],
)
def test_a_bad_profile_is_refused_and_named(bad, words):
    settings = settings_of()
    assert profile_settings(settings).length == 1142
    nodes = Nodes(settings)
    nodes.profiles[3] = bad
    clusters, _ = introduced(settings, nodes)
    assert list(clusters.refused) == [3]
    assert words in clusters.refused[3]
    # Without a profile it goes where the rule of assignment puts it, the others by theirs.
    assert 3 not in clusters.map.members
    assert clusters.assignment[3] == 1
    assert clusters.assignment[0] == clusters.assignment[1] != clusters.assignment[2]


def test_nobody_claims_more_prompts_than_were_asked_for():
    settings = settings_of()
    nodes = Nodes(settings)
    nodes.profiles[3] = profile_of(settings, 3, 1)
    nodes.profiles[3][4] = 2**20
    clusters, _ = introduced(settings, nodes)
    assert "1048576; allowed: at most 32" in clusters.refused[3]


def test_who_sends_no_profile_is_named_and_not_waited_for_again():
    settings = settings_of()
    nodes = Nodes(settings)
    clusters, strategy = Clusters(settings), Strategy()
    plain = nodes._answer

    def without_profile(message):
        reply = plain(message)
        if profiles.requested(message) is not None and reply is not None:
            client = reply.content.metric_records["metrics"]["client"]
            if client == 6:
                return None
            if client == 7:
                return Message(
                    RecordDict({"metrics": MetricRecord({"client": 7})}), reply_to=message
                )
        return reply

    nodes._answer = without_profile
    clusters.introduce(nodes, strategy)
    assert clusters.silent == [6]
    assert "missing" in clusters.refused[7]
    asked = len(nodes.asked)
    clusters.meet(nodes.get_node_ids())
    assert len(nodes.asked) == asked


def test_too_few_profiles_leave_clients_where_they_are():
    settings = settings_of(clusters=4)
    nodes = Nodes(settings, present=[1, 2, 5])
    clusters, strategy = introduced(settings, nodes)
    assert clusters.assignment == [0, 1, 2, 3, 0, 1, 2, 3]
    assert strategy.calls == [] and clusters.clusterings == 0


def test_a_late_client_joins_those_like_it():
    settings = settings_of()
    nodes = Nodes(settings, present=range(6))
    clusters, _ = introduced(settings, nodes)
    grid = clusters.watch(nodes)
    for client in (6, 7):
        nodes.clients[200 + client] = client
    nodes.groups[7] = 0
    assert list(grid.get_node_ids()) == [*range(100, 106), 206, 207]
    assert clusters.map.clients_of([206, 207]) == [6, 7]
    assert clusters.map.clusters_of([206]) == clusters.map.clusters_of([102])
    assert clusters.map.clusters_of([207]) == clusters.map.clusters_of([100])
    # Asked with a bound of seconds, and once.
    assert max(nodes.timeouts[2:]) <= 3 * roster.LATE_SECONDS
    asked = len(nodes.asked)
    grid.get_node_ids()
    assert len(nodes.asked) == asked


def test_a_late_client_is_told_apart_with_assigned_clusters_too():
    settings = settings_of(cluster_by="by-partition")
    nodes = Nodes(settings, present=range(6))
    clusters, _ = introduced(settings, nodes)
    assert clusters.map.clients_of([207]) == [-1]
    assert clusters.roster.absent == [6, 7]
    nodes.clients[207] = 7
    clusters.watch(nodes).get_node_ids()
    assert clusters.roster.absent == [6]
    assert clusters.map.clients_of([207]) == [7]
    assert clusters.map.clusters_of([207]) == [1]


def test_a_bad_late_profile_goes_by_its_number():
    settings = settings_of()
    nodes = Nodes(settings, present=range(7))
    clusters, _ = introduced(settings, nodes)
    nodes.clients[107] = 7
    nodes.profiles[7] = np.full(1142, np.inf, np.float32)
    clusters.meet([107])
    assert list(clusters.refused) == [7] and clusters.assignment[7] == 1


def test_a_silent_node_does_not_hold_up_every_round(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(roster.time, "monotonic", lambda: now[0])
    settings = settings_of(cluster_by="round-robin")
    nodes = Nodes(settings)
    nodes.silent = {7}
    clusters, _ = introduced(settings, nodes)
    assert nodes.asked.count((7, None)) == 1
    for _ in range(100):
        now[0] += 1.0
        clusters.meet(nodes.get_node_ids())
    assert nodes.asked.count((7, None)) == 7  # after 0, 1, 3, 7, 15, 31 and 63 seconds
    nodes.silent = set()
    now[0] += 64.0
    clusters.meet(nodes.get_node_ids())
    assert clusters.map.clients_of([107]) == [7]


@pytest.mark.parametrize("answer", [{"client": 8}, {"client": -1}, {"client": 0.5}, {}])
def test_a_node_that_names_no_client_stays_unknown(answer):
    settings = settings_of(cluster_by="round-robin")
    nodes = Nodes(settings, present=[0])
    nodes._answer = lambda message: Message(
        RecordDict({"metrics": MetricRecord(answer)}), reply_to=message
    )
    clusters, _ = introduced(settings, nodes)
    assert clusters.map.clients_of([100]) == [-1]


def test_clusters_are_learned_anew_and_keep_their_numbers():
    settings = settings_of(recluster_every=2)
    nodes = Nodes(settings)
    clusters, strategy = introduced(settings, nodes)
    before = clusters.assignment
    nodes.groups[0] = 1 - nodes.groups[0]
    nodes.broken = {5}
    assert [clusters.renew(number, strategy) for number in range(1, 7)] == [
        False, True, False, True, False, False,
    ]  # fmt: skip
    after = clusters.assignment
    assert after[0] != before[0]
    # Client 5 was not heard and stays.
    assert after[1:] == before[1:]
    assert strategy.calls[-1] == dict(enumerate(after)) and strategy.cluster_map is clusters.map
    assert clusters.clusterings == 3
    assert {release for _, release in nodes.profile_queries()} == {0, 2, 4}


def test_a_client_that_missed_a_clustering_is_placed_when_it_returns():
    settings = settings_of(recluster_every=2)
    nodes = Nodes(settings)
    clusters, strategy = introduced(settings, nodes)
    old = clusters.assignment[0]
    del nodes.clients[100]
    clusters.roster.nodes.pop(0)  # gone before the round
    clusters.renew(2, strategy)
    nodes.clients[300] = 0
    nodes.groups[0] = 1 - nodes.groups[0]
    clusters.meet(nodes.get_node_ids())
    assert nodes.profile_queries()[-1] == (0, 2)
    assert clusters.map.clusters_of([300]) == [1 - old]


def test_noise_is_accounted_for_by_the_client_asked_most_often():
    settings = settings_of(profile_noise=4.0, recluster_every=1, profile_rows=0)
    agreed = profile_settings(settings)
    nodes = Nodes(settings)
    clusters, strategy = introduced(settings, nodes)
    assert clusters.epsilon == agreed.epsilon(1)
    nodes.silent = {2}
    clusters.renew(1, strategy)
    assert clusters.epsilon == agreed.epsilon(2) > agreed.epsilon(1)


def test_state_survives_a_restart_under_other_node_ids():
    settings = settings_of(recluster_every=2)
    nodes = Nodes(settings)
    nodes.profiles[4] = np.zeros(3, np.float32)
    clusters, strategy = introduced(settings, nodes)
    clusters.renew(2, strategy)
    state = state_from_bytes(state_to_bytes(clusters.state_dict()))
    again, resumed = Clusters(settings), Strategy()
    again.load_state_dict(state, resumed)
    assert again.assignment == clusters.assignment
    assert resumed.cluster_map is again.map
    returned = Nodes(settings)
    returned.profiles = nodes.profiles
    returned.clients = {500 + client: client for client in range(8)}
    again.introduce(returned, resumed)
    # Nobody is asked twice for the same clustering.
    assert returned.profile_queries() == []
    assert again.map.clusters_of([500, 502]) == clusters.map.clusters_of([100, 102])
    assert (again.bytes, again.refused) == (clusters.bytes, clusters.refused)
    again.renew(4, resumed)
    clusters.renew(4, strategy)
    assert again.assignment == clusters.assignment


def test_other_clusters_cannot_be_continued_with():
    learned = Clusters(settings_of()).state_dict()
    with pytest.raises(ValueError, match=r"'cluster-by' = 'round-robin'.*learned"):
        Clusters(settings_of(cluster_by="round-robin")).load_state_dict(learned, Strategy())


@pytest.mark.parametrize(
    "changes",
    [
        {"cluster_by": "classifier", "profile_rows": 1},
        {"cluster_by": "classifier", "profile_prompts": 1},
        {"cluster_by": "round-robin", "recluster_every": 2},
        {"recluster_every": 2, "learning": "certified", "personalisation": "cluster"},
    ],
)
def test_settings_that_contradict_each_other(changes):
    with pytest.raises(SettingsError, match=r"profile-rows|recluster-every"):
        settings_of(**changes)


def test_true_groups_are_the_classes_where_there_are_clients_enough():
    counts = np.array([[5, 0], [1, 4], [6, 0]])
    assert true_groups(settings_of(partition="by-class"), counts).tolist() == [0, 1, 0]
    assert true_groups(settings_of(partition="iid"), counts) is None
    assert true_groups(settings_of(partition="by-class"), np.array([[2, 3]])) is None


def test_edge_servers_are_told_of_new_members(monkeypatch):
    members: dict[str, frozenset[int]] = {}

    class Handle:
        """An actor that is found again knows the members it was built with."""

        def __init__(self, build, name) -> None:
            members.setdefault(name, frozenset(build.args[3]))
            self.serve = self
            self.remote = lambda found: members.__setitem__(name, frozenset(found))

    monkeypatch.setattr(
        edge_hosting, "start_actor", lambda kind, name, namespace, build: Handle(build, name)
    )
    host = edge_hosting.EdgeHost(settings_of(clients=4), 1)
    for assignment in ([0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1]):
        host.ensure(assignment)
        for cluster in (0, 1):
            expected = {client for client in range(4) if assignment[client] == cluster}
            assert members[edge_hosting.edge_actor_name(1, cluster)] == expected


def test_an_edge_actor_serves_its_new_members():
    server = types.SimpleNamespace(members=frozenset({0}))
    actor = EdgeActor(lambda: server)
    actor.serve([1, 2])
    assert server.members == {1, 2}


# --- whole runs ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runner():
    with pytest.MonkeyPatch.context() as patch:
        yield in_process.Runner(patch)


def run(runner, folder, **changes):
    given = {
        "clients": 8, "clusters": 4, "partition": "by-class", "cluster_by": "profile",
        "tokens_per_round": 5, "personalisation": "cluster",
    }  # fmt: skip
    return runner.run(folder, **{**given, **changes})


@pytest.mark.slow
def test_a_run_learns_its_clusters_and_reports_them(runner, tmp_path):
    federation, folder, _ = run(runner, tmp_path, recluster_every=1)
    figures = folder.summary()["clustering"]
    assert figures["method"] == "profile" and figures["clusterings"] == 2
    assert list(figures["map"]) == [str(client) for client in range(8)]
    assert figures["map"] == {str(c): k for c, k in enumerate(federation._clusters.assignment)}
    # Eight clients of one topic each, four topics.
    assert figures["adjusted_rand_index"] == 1.0
    assert figures["purity"] == 1.0
    assert 2 * 8 * 4568 < figures["bytes"] < 2 * 8 * 5000
    assert figures["epsilon"] is None and figures["refused"] == {} and figures["silent"] == []
    page = (folder.path / "report.html").read_text()
    assert "adjusted Rand index" in page and "cluster 3" in page
    # A cluster's threshold is that of its members.
    thresholds = folder.metrics()[-1]["threshold"]
    assert set(thresholds["clusters"]) == {"0", "1", "2", "3"}


@pytest.mark.slow
def test_a_resumed_run_keeps_its_learned_clusters(runner, tmp_path):
    options = {"rounds": 3, "recluster_every": 1, "profile_prompts": 4, "tokens_per_prompt": 5}
    _, folder, _ = run(runner, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        run(runner, tmp_path / "cut", stop_after=2, **options)
    cut = next((tmp_path / "cut").iterdir())
    federation, again, _ = run(runner, tmp_path, resume=str(cut), **options)
    assert isinstance(federation._clusters.map, LearnedClusters)
    first, second = folder.summary(), again.summary()
    for key in ("clustering", "threshold", "resolution", "tokens"):
        assert first[key] == second[key], key


@pytest.mark.slow
def test_profiles_of_a_device_repeat_without_noise_and_differ_with_it(runner):
    plain = in_process.settings_of(profile_prompts=6)
    device = runner._device(plain, 0, 1)
    agreed = profile_settings(plain)
    one, same, other = (profiles.device_profile(device, release) for release in (0, 0, 1))
    assert isinstance(one, Profile) and one.prompts == 6
    assert np.array_equal(one.to_array(agreed), same.to_array(agreed))
    assert not np.array_equal(one.mean, other.mean)
    noisy = in_process.settings_of(profile_prompts=6, profile_noise=1.0)
    device = runner._device(noisy, 0, 1)
    pair = [profiles.device_profile(device, 0) for _ in range(2)]
    assert not np.array_equal(pair[0].mean, pair[1].mean)
