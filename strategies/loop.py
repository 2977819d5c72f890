"""The rounds of a run, from any round on, with the log lines of Flower's own strategies."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Sequence
from logging import INFO

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from flwr.supercore import log

ServerEvaluation = Callable[[int, ArrayRecord], MetricRecord | None]


def run_rounds(
    strategy: Strategy,
    grid: Grid,
    arrays: ArrayRecord,
    rounds: Sequence[int],
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
    rounds : sequence of int
        Ascending; the evaluation before training takes place when the first is 1.
    timeout : float
        Longest time to wait for the replies of one leg, in seconds.
    """
    result = Result(arrays=arrays)
    begin = time.monotonic()

    def send(messages: Iterable[Message]) -> Iterable[Message]:
        asked = list(messages)
        return grid.send_and_receive(asked, timeout=timeout) if asked else []

    def evaluate(server_round: int, arrays: ArrayRecord, line: str) -> None:
        if evaluate_fn is not None:
            metrics = evaluate_fn(server_round, arrays)
            log(INFO, line, metrics)
            if metrics is not None:
                result.evaluate_metrics_serverapp[server_round] = metrics

    if rounds and rounds[0] == 1:
        evaluate(0, arrays, "Initial global evaluation results: %s")
    for current in rounds:
        log(INFO, "")
        log(INFO, "[ROUND %s/%s]", current, rounds[-1])
        # Replies have no name here: those of a round are gone before the next are awaited.
        new_arrays, metrics = strategy.aggregate_train(
            current, send(strategy.configure_train(current, arrays, train_config, grid))
        )
        arrays = arrays if new_arrays is None else new_arrays
        _store(result.train_metrics_clientapp, current, metrics)
        metrics = strategy.aggregate_evaluate(
            current, send(strategy.configure_evaluate(current, arrays, evaluate_config, grid))
        )
        _store(result.evaluate_metrics_clientapp, current, metrics)
        if evaluate_fn is not None:
            log(INFO, "Global evaluation")
        evaluate(current, arrays, "\t└──> MetricRecord: %s")
    result.arrays = arrays
    log(INFO, "")
    log(INFO, "Strategy execution finished in %.2fs", time.monotonic() - begin)
    log(INFO, "")
    log(INFO, "Final results:")
    log(INFO, "")
    for line in io.StringIO(str(result)):
        log(INFO, "\t%s", line.strip("\n"))
    log(INFO, "")
    return result


def _store(metrics: dict[int, MetricRecord], server_round: int, value: MetricRecord | None) -> None:
    if value is not None:
        log(INFO, "\t└──> Aggregated MetricRecord: %s", value)
        metrics[server_round] = value
