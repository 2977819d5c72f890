"""Any stateless Flower strategy as an edge or cloud rule: its own code decides."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Bulyan, Strategy

from hlm.arrays import FloatArray
from strategies.rules import RULES, AggregationRule


class FlowerRule(AggregationRule):
    """Hand one group's values to `aggregate_train` of a fresh Flower strategy.

    The values become replies with one array and the metric ``num-examples``. A fresh strategy for
    every call means that nothing is remembered: for FedAdam and its family use the rules of that
    name, which keep and checkpoint their moments.

    Parameters
    ----------
    make : callable
        Makes the strategy, for example ``lambda: FedTrimmedAvg(beta=0.3)``.

    Raises
    ------
    TypeError
        On a strategy where a function that makes one is wanted.
    """

    def __init__(self, make: Callable[[], Strategy]) -> None:
        if not callable(make):
            raise TypeError(
                f"make: {make!r}; allowed: a function that makes a strategy, as "
                "lambda: FedTrimmedAvg(beta=0.3)"
            )
        self.make = make

    def combine(self, values: FloatArray, weights: FloatArray, previous: FloatArray) -> FloatArray:
        """See `AggregationRule`; `previous` is returned where the strategy declines."""
        replies = [
            Message(
                RecordDict(
                    {
                        "arrays": ArrayRecord({"policy": Array(np.ascontiguousarray(value))}),
                        "metrics": MetricRecord({"num-examples": float(weight)}),
                    }
                ),
                dst_node_id=index + 1,
                message_type="train",
            )
            for index, (value, weight) in enumerate(zip(values, weights, strict=True))
        ]
        arrays, _ = self.make().aggregate_train(1, replies)
        if arrays is None:
            return np.array(previous, dtype=np.float64)
        return np.asarray(arrays["policy"].numpy(), dtype=np.float64)


def bulyan(malicious: int = 1) -> FlowerRule:
    """Bulyan (El Mhamdi et al., 2018); needs 4 `malicious` + 3 values, else nothing changes."""
    if malicious < 0:
        raise ValueError(f"malicious: {malicious}; allowed: >= 0")
    return FlowerRule(lambda: Bulyan(num_malicious_nodes=malicious))


RULES["bulyan"] = bulyan
