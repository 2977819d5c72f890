"""Texts for the clients: reading them, dividing them among clients, making prompts of them."""

from fedhlm_app.data.items import (
    BUILTIN,
    DataError,
    Items,
    Split,
    has_splits,
    items_from_rows,
    load_items,
)
from fedhlm_app.data.partitions import PartitionKind, label_counts, partition, split_client
from fedhlm_app.data.prompts import TEXT_TOKENS, Prompt, Workload, prompts

__all__ = [
    "BUILTIN",
    "TEXT_TOKENS",
    "DataError",
    "Items",
    "PartitionKind",
    "Prompt",
    "Split",
    "Workload",
    "has_splits",
    "items_from_rows",
    "label_counts",
    "load_items",
    "partition",
    "prompts",
    "split_client",
]
