"""Stock Flower clients under our strategies: nothing but the class is another one."""

from __future__ import annotations

import gc
import logging
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, fixedclipping_mod, message_size_mod
from flwr.serverapp.strategy import FedAvg

from strategies import (
    HierarchicalFedAvg,
    HierarchicalFedNova,
    HierarchicalFedProx,
    NodeClusters,
    RoundFailed,
    state_from_bytes,
    state_to_bytes,
)
from tests.strategies.fake_grid import FakeGrid

SHAPES = {"0": (4, 3), "1": (3,), "2": (), "3": (2, 0)}
WEIGHTS = {11: 5, 12: 3, 13: 11, 14: 1, 15: 7}


class Stock:
    """What a template's ClientApp replies: arrays and metrics, and no word of rounds."""

    def __init__(self, node: int, dtype: str = "f8", **metrics: Any) -> None:
        self.node, self.dtype, self.metrics = node, dtype, metrics
        self.seen: list[ConfigRecord] = []

    def __call__(self, message: Message) -> Message:
        arrays = message.content["arrays"].to_numpy_ndarrays()  # type: ignore[union-attr]
        self.seen.append(message.content["config"])  # type: ignore[arg-type]
        metrics = {"num-examples": WEIGHTS[self.node], **self.metrics}
        if message.metadata.message_type == "evaluate":
            content = RecordDict({"metrics": MetricRecord({**metrics, "eval_acc": self.node / 20})})
            return Message(content, reply_to=message)
        moved = [np.asarray(array + np.asarray(self.node / 7, self.dtype)) for array in arrays]
        content = RecordDict(
            {
                "arrays": ArrayRecord([array.astype(self.dtype) for array in moved]),
                "metrics": MetricRecord({**metrics, "train_loss": self.node / 3}),
            }
        )
        return Message(content, reply_to=message)


def _modded(node: int, mod: Any) -> Callable[[Message], Message]:
    """The stock client in an app with one of Flower's mods."""
    app, stock = ClientApp(mods=[mod]), Stock(node)
    for register in (app.train, app.evaluate):
        register()(lambda message, context: stock(message))
    context = Context(1, node, {}, RecordDict(), {})
    return lambda message: app(message, context)


def _start(dtype: str = "f8") -> ArrayRecord:
    rng = np.random.default_rng(1)
    return ArrayRecord([np.asarray(rng.random(shape), dtype) for shape in SHAPES.values()])


def _grid(**options: Any) -> FakeGrid:
    return FakeGrid({node: Stock(node, **options) for node in WEIGHTS})


def _arrays(record: ArrayRecord) -> np.ndarray:
    return np.concatenate([array.numpy().ravel() for array in record.values()])


def _without(clients: FakeGrid, **culprits: Callable[[Message], Message]) -> FakeGrid:
    clients.clients |= {int(name[1:]): culprit for name, culprit in culprits.items()}  # type: ignore[misc]
    return clients


def test_flowers_mods_go_before_any_client(caplog: pytest.LogCaptureFixture) -> None:
    def trained(mod: Any) -> np.ndarray:
        grid = FakeGrid({node: _modded(node, mod) for node in WEIGHTS})
        strategy = HierarchicalFedAvg(fraction_evaluate=float(mod is message_size_mod))
        return _arrays(strategy.start(grid, _start(), num_rounds=1).arrays)

    plain = trained(message_size_mod)
    noisy = trained(LocalDpMod(clipping_norm=100.0, sensitivity=1e-3, epsilon=10.0, delta=1e-5))
    assert 0 < np.abs(noisy - plain).max() < 0.01
    # This one wants Flower's own wrapper at the server: its words end the run.
    with pytest.raises(RoundFailed, match="node 11: fixedclipping_mod requires the key"):
        trained(fixedclipping_mod)


@pytest.mark.parametrize(("dtype", "tolerance"), [("f8", 1e-14), ("f4", 1e-6), ("f2", 2e-3)])
def test_one_cluster_is_flowers_fedavg(dtype: str, tolerance: float) -> None:
    options: dict[str, Any] = {"grid": _grid(dtype=dtype), "num_rounds": 3}
    config = ConfigRecord({"lr": 0.1})
    scores: list[tuple[int, float]] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        scores.append((server_round, float(_arrays(arrays).mean())))
        return MetricRecord({"score": scores[-1][1]})

    ours, theirs = (
        strategy.start(
            initial_arrays=_start(dtype), train_config=config, evaluate_fn=evaluate, **options
        )
        for strategy in (HierarchicalFedAvg(), FedAvg())
    )
    assert list(ours.arrays) == list(theirs.arrays)
    for name, array in theirs.arrays.items():
        found = ours.arrays[name].numpy()
        assert (found.dtype, found.shape) == (np.dtype(dtype), array.numpy().shape)
        np.testing.assert_allclose(found, array.numpy(), rtol=tolerance)
    assert [server_round for server_round, _ in scores] == [0, 1, 2, 3] * 2
    for name in ("train_metrics_clientapp", "evaluate_metrics_clientapp"):
        mine, flowers = getattr(ours, name), getattr(theirs, name)
        assert list(mine) == list(flowers) == [1, 2, 3]
        for server_round, metrics in flowers.items():
            assert mine[server_round] == pytest.approx(dict(metrics))
    assert list(ours.evaluate_metrics_serverapp) == [0, 1, 2, 3]


def test_two_tiers_by_hand() -> None:
    table = {11: 0, 12: 1, 13: 0, 14: 1, 15: 1}
    for clusters in (table, NodeClusters(table)):
        strategy = HierarchicalFedAvg(clusters=clusters, fraction_evaluate=0.0)
        result = strategy.start(_grid(), _start(), num_rounds=1)  # type: ignore[arg-type]
        edges = [
            sum(WEIGHTS[n] * n / 7 for n in members) / sum(WEIGHTS[n] for n in members)
            for members in ((11, 13), (12, 14, 15))
        ]
        np.testing.assert_allclose(
            _arrays(result.arrays), _arrays(_start()) + sum(edges) / 2, rtol=1e-14
        )


def test_a_number_of_clusters_deals_nodes_in_turn() -> None:
    strategy = HierarchicalFedAvg(clusters=2)
    strategy.start(_grid(), _start(), num_rounds=1)  # type: ignore[arg-type]
    assert strategy.history[0].clients == {11: 0, 12: 1, 13: 0, 14: 1, 15: 0}
    # Who comes later joins the smaller one, and nobody moves.
    assert strategy.cluster_map.clusters_of([15, 9, 11]) == [0, 1, 0]


def test_clients_name_their_cluster() -> None:
    """As clients do that know it from their node config."""
    grid = FakeGrid({n: Stock(n, site=70 + n % 2) for n in WEIGHTS})
    named = HierarchicalFedAvg(clusters="site")
    given = HierarchicalFedAvg(clusters={n: (n + 1) % 2 for n in WEIGHTS})
    results = [s.start(grid, _start(), num_rounds=3) for s in (named, given)]  # type: ignore[arg-type]
    np.testing.assert_allclose(*(_arrays(result.arrays) for result in results), rtol=1e-14)
    assert named.history[0].clients == {11: 0, 12: 1, 13: 0, 14: 1, 15: 0}
    # A resumed run knows its clusters again.
    again = HierarchicalFedAvg(clusters="site")
    again.load_state_dict(state_from_bytes(state_to_bytes(named.state_dict())))
    again.start(grid, _start(), num_rounds=4)  # type: ignore[arg-type]
    assert again.history[0].clients == named.history[0].clients
    with pytest.raises(ValueError, match="personalisation='global'"):
        HierarchicalFedAvg(clusters="site", personalisation="cluster")


def test_a_reply_that_names_no_cluster_is_refused() -> None:
    grid = FakeGrid({n: Stock(n, **({} if n == 12 else {"site": 3})) for n in WEIGHTS})
    strategy = HierarchicalFedAvg(clusters="site")
    strategy.start(grid, _start(), num_rounds=1)  # type: ignore[arg-type]
    assert [(r.node_id, r.reason) for r in strategy.history[0].refused] == [(12, "bad-metric")]


def _bad(change: Callable[[RecordDict], None]) -> Callable[[Message], Message]:
    def reply(message: Message) -> Message:
        answer = Stock(13)(message)
        if message.metadata.message_type == "train":
            change(answer.content)
        return answer

    return reply


def _set(value: np.ndarray) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content.array_records["arrays"]["1"] = Array(value)

    return change


def _metric(name: str, value: float) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content.metric_records["metrics"][name] = value

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_set(np.array([1.0, np.nan, 0.0])), "not-finite"),
        (_set(np.array([1.0, np.inf, 0.0])), "not-finite"),
        (_set(np.zeros(4)), "unreadable-array"),
        (_set(np.zeros(3, "c16")), "unreadable-array"),
        (_metric("train_loss", float("nan")), "not-finite"),
        (_metric("num-examples", -1.0), "bad-weight"),
        (lambda content: content.array_records["arrays"].pop("2"), "missing-key"),
    ],
)
def test_a_bad_stock_reply_is_refused_counted_and_not_averaged(
    change: Callable[[RecordDict], None], reason: str
) -> None:
    strategy = HierarchicalFedAvg(fraction_evaluate=0.0)
    bad = strategy.start(_without(_grid(), n13=_bad(change)), _start(), num_rounds=2)  # type: ignore[arg-type]
    assert [record.refused_by_reason for record in strategy.history] == [{reason: 1}] * 2
    honest = _grid()
    del honest.clients[13]
    good = HierarchicalFedAvg(fraction_evaluate=0.0).start(honest, _start(), num_rounds=2)  # type: ignore[arg-type]
    np.testing.assert_array_equal(_arrays(bad.arrays), _arrays(good.arrays))
    assert bad.train_metrics_clientapp == good.train_metrics_clientapp


def test_a_round_without_a_usable_reply_ends_the_run_with_the_reason() -> None:
    grid = _grid()
    grid.clients = dict.fromkeys(WEIGHTS, _bad(_set(np.full(3, np.nan))))
    with pytest.raises(RoundFailed, match="not-finite"):
        HierarchicalFedAvg().start(grid, _start())  # type: ignore[arg-type]


def test_names_of_records_and_metric_functions_are_the_callers() -> None:
    def client(message: Message) -> Message:
        assert set(message.content) == {"model", "settings"}
        content = RecordDict({"numbers": MetricRecord({"rows": 4, "loss": 1.0})})
        if message.metadata.message_type == "train":
            content["weights"] = message.content["model"]
        return Message(content, reply_to=message)

    def told(contents: list[RecordDict], key: str) -> MetricRecord:
        assert key == "rows"
        arrays = sum(len(content.array_records) for content in contents)
        return MetricRecord({"replies": len(contents), "arrays": arrays})

    strategy = HierarchicalFedAvg(
        weighted_by_key="rows",
        arrayrecord_key="model",
        configrecord_key="settings",
        train_metrics_aggr_fn=told,
        evaluate_metrics_aggr_fn=told,
    )
    result = strategy.start(FakeGrid({1: client, 2: client}), _start(), num_rounds=1)  # type: ignore[arg-type]
    assert dict(result.train_metrics_clientapp[1]) == {"replies": 2, "arrays": 2}
    assert dict(result.evaluate_metrics_clientapp[1]) == {"replies": 2, "arrays": 0}


def test_sampling_is_by_flowers_arguments() -> None:
    strategy = HierarchicalFedAvg(
        fraction_train=0.5, fraction_evaluate=0.1, min_train_nodes=1, min_evaluate_nodes=3
    )
    grid = _grid()
    strategy.start(grid, _start(), num_rounds=1)  # type: ignore[arg-type]
    kinds = [message.metadata.message_type for message in grid.sent]
    assert (kinds.count("train"), kinds.count("evaluate")) == (2, 3)
    idle = HierarchicalFedAvg(fraction_train=0.0)
    result = idle.start(_grid(), _start(), num_rounds=1)  # type: ignore[arg-type]
    np.testing.assert_array_equal(_arrays(result.arrays), _arrays(_start()))
    assert not result.train_metrics_clientapp and result.evaluate_metrics_clientapp


def test_the_log_reads_like_flowers_own(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="flwr"):
        bad = _bad(_set(np.zeros(4)))
        HierarchicalFedAvg().start(_without(_grid(), n13=bad), _start(), num_rounds=2)  # type: ignore[arg-type]
    told = "\n".join(record.getMessage() for record in caplog.records)
    for line in (
        "Starting HierarchicalFedAvg strategy:",
        "Number of rounds: 2",
        "clusters: 1, flat like FedAvg: no clusters were given",
        "[ROUND 2/2]",
        "configure_train: Sampled 5 nodes (out of 5)",
        "aggregate_train: Received 4 results and 1 failures",
        "Refused reply from node 13: unreadable-array (shape (4,); allowed: (3,))",
        "Aggregated MetricRecord: {'train_loss': ",
        "configure_evaluate: Sampled 5 nodes (out of 5)",
        "aggregate_evaluate: Received 5 results and 0 failures",
        "Strategy execution finished in",
        "Final results:",
    ):
        assert line in told, line


def test_fedprox_tells_its_clients_mu_as_flowers_own() -> None:
    grid = _grid()
    HierarchicalFedProx(proximal_mu=0.3).start(grid, _start(), num_rounds=1)  # type: ignore[arg-type]
    assert {client.seen[0]["proximal-mu"] for client in grid.clients.values()} == {0.3}  # type: ignore[attr-defined]


def test_fednova_needs_one_metric_more() -> None:
    grid = FakeGrid({n: Stock(n, **{"local-steps": n - 10}) for n in WEIGHTS})
    strategy = HierarchicalFedNova(fraction_evaluate=0.0)
    result = strategy.start(grid, _start(), num_rounds=1)  # type: ignore[arg-type]
    share = {n: weight / sum(WEIGHTS.values()) for n, weight in WEIGHTS.items()}
    steps = sum(share[n] * (n - 10) for n in WEIGHTS)
    moved = steps * sum(share[n] * (n / 7) / (n - 10) for n in WEIGHTS)
    np.testing.assert_allclose(_arrays(result.arrays), _arrays(_start()) + moved, rtol=1e-13)
    with pytest.raises(RoundFailed, match="local-steps"):
        HierarchicalFedNova().start(_grid(), _start())  # type: ignore[arg-type]


@pytest.mark.parametrize("clusters", [None, 3])
def test_memory_does_not_grow_with_clients_or_rounds(clusters: int | None) -> None:
    """The server's own share: of models as float64, what stays and what a round needs on top."""
    size, model = 1_000_000, 8_000_000
    peaks: list[int] = []

    class Streaming(FakeGrid):
        """Replies are made when they are asked for, so that none but ours are held."""

        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
            asked = list(messages)
            return (self.clients[m.metadata.dst_node_id](m) for m in asked)

    def client(message: Message) -> Message:
        content = RecordDict({"metrics": MetricRecord({"num-examples": 1})})
        if message.metadata.message_type == "train":
            content["arrays"] = message.content["arrays"]
        return Message(content, reply_to=message)

    start = ArrayRecord([np.zeros(size, "f4")])
    for clients, rounds in ((4, 2), (12, 2), (12, 10)):
        grid = Streaming(dict.fromkeys(range(1, clients + 1), client))
        strategy = HierarchicalFedAvg(clusters=clusters)
        gc.collect()
        tracemalloc.start()
        result = strategy.start(grid, start, num_rounds=rounds)  # type: ignore[arg-type]
        peaks.append(tracemalloc.get_traced_memory()[1])
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        count = 1 if clusters is None else clusters
        assert len(strategy.history) == rounds and len(result.arrays) == 1
        assert kept < (count + 3) * model
    assert max(peaks) < (3 * (clusters or 1) + 6) * model
    # A model per client or per round would be eight more.
    assert max(peaks) - min(peaks) < model


@pytest.mark.parametrize("clusters", [0, True, 2.5, {1: -1}, {1: "a"}, ""])
def test_bad_clusters_are_named(clusters: Any) -> None:
    with pytest.raises(ValueError, match="clusters"):
        HierarchicalFedAvg(clusters=clusters)
