"""Keys and metric functions of messages, as in Flower's own strategies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from logging import INFO

from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.supercore import log

from strategies.validation import Update

MetricsFunction = Callable[[list[RecordDict], str], MetricRecord]
"""(contents of the accepted replies, weight key) -> their metrics as one record."""


@dataclass(frozen=True)
class RecordOptions:
    """Names in messages, and who sums metrics up.

    Attributes
    ----------
    arrays_key, config_key : str
        Names of the two records of a message to a client.
    weight_key : str
        Metric of a reply that is its weight, n_k.
    train_metrics, evaluate_metrics : callable, optional
        See `MetricsFunction`; by default the weighted mean of every metric but the weight.
    """

    arrays_key: str = "arrays"
    config_key: str = "config"
    weight_key: str = "num-examples"
    train_metrics: MetricsFunction | None = None
    evaluate_metrics: MetricsFunction | None = None

    def summary(self) -> None:
        """Log the names, as Flower's own strategies do."""
        keys = self.arrays_key, self.config_key, self.weight_key
        log(INFO, "\t├──> Keys in records: '%s', '%s', weighted by '%s'", *keys)

    def summed_up(self, updates: list[Update], train: bool) -> MetricRecord:
        """Metrics of accepted replies as one record."""
        function = self.train_metrics if train else self.evaluate_metrics
        if function is None:
            return weighted_metrics(updates, self.weight_key)
        return function([self._content(update) for update in updates], self.weight_key)

    def _content(self, update: Update) -> RecordDict:
        content = RecordDict({"metrics": MetricRecord(dict(update.metrics))})
        if update.record is not None:
            content[self.arrays_key] = ArrayRecord(dict(update.record))
        return content


def weighted_metrics(updates: list[Update], weight_key: str) -> MetricRecord:
    """Weighted mean of each metric over the replies that have it; lists entry by entry.

    Equal weights where those of a metric sum to 0. ``client`` and ``round`` are left out.
    """
    totals: dict[str, float] = {}
    counts: dict[str, int] = {}
    for update in updates:
        for name in update.metrics:
            totals[name] = totals.get(name, 0.0) + update.weight
            counts[name] = counts.get(name, 0) + 1
    means: dict[str, int | float | list[int] | list[float]] = {}
    for update in updates:
        for name, value in update.metrics.items():
            if name in (weight_key, "client", "round"):
                continue
            total = totals[name]
            share = update.weight / total if total > 0 else 1 / counts[name]
            before = means.get(name)
            if isinstance(value, list):
                old = before if isinstance(before, list) else [0.0] * len(value)
                means[name] = [a + b * share for a, b in zip(old, value, strict=True)]
            else:
                means[name] = (before if isinstance(before, float) else 0.0) + value * share
    return MetricRecord(means)
