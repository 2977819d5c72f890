"""The rounds of a run, from any round on."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

ServerEvaluation = Callable[[int, ArrayRecord], MetricRecord | None]


def run_rounds(
    strategy: Strategy,
    grid: Grid,
    arrays: ArrayRecord,
    rounds: Iterable[int],
    timeout: float,
    train_config: ConfigRecord,
    evaluate_config: ConfigRecord,
    evaluate_fn: ServerEvaluation | None = None,
) -> Result:
    """Run `rounds` as Flower's `Strategy.start` does, which always begins at round 1.

    Parameters
    ----------
    arrays : ArrayRecord
        What the first of these rounds starts from.
    rounds : iterable of int
        Ascending; the evaluation before training takes place when the first is 1.
    timeout : float
        Longest time to wait for the replies of one leg, in seconds.
    """
    result = Result(arrays=arrays)
    for current in rounds:
        if current == 1 and evaluate_fn is not None:
            _store(result.evaluate_metrics_serverapp, 0, evaluate_fn(0, arrays))
        asked = list(strategy.configure_train(current, arrays, train_config, grid))
        replies = grid.send_and_receive(asked, timeout=timeout)
        new_arrays, metrics = strategy.aggregate_train(current, replies)
        arrays = arrays if new_arrays is None else new_arrays
        _store(result.train_metrics_clientapp, current, metrics)
        asked = list(strategy.configure_evaluate(current, arrays, evaluate_config, grid))
        answers = grid.send_and_receive(asked, timeout=timeout) if asked else []
        metrics = strategy.aggregate_evaluate(current, answers)
        _store(result.evaluate_metrics_clientapp, current, metrics)
        if evaluate_fn is not None:
            _store(result.evaluate_metrics_serverapp, current, evaluate_fn(current, arrays))
    result.arrays = arrays
    return result


def _store(metrics: dict[int, MetricRecord], server_round: int, value: MetricRecord | None) -> None:
    if value is not None:
        metrics[server_round] = value
