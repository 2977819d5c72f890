"""Keys and metric functions of messages, as in Flower's own strategies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from logging import INFO

from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.supercore import log

from strategies.records import IDENTITY, weighted_means
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
    """Weighted mean of each metric but the weight; ``client`` and ``round`` are left out."""
    names = dict.fromkeys(name for update in updates for name in update.metrics)
    kept = [name for name in names if name not in (weight_key, *IDENTITY)]
    return MetricRecord({k: mean.tolist() for k, mean in weighted_means(updates, kept).items()})
