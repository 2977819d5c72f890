"""The dataset that a run's settings name."""

from __future__ import annotations

from typing import cast

from fedhlm_app.data.items import Items, Split, load_items
from fedhlm_app.settings import Settings


def items_of(settings: Settings) -> Items:
    """The dataset of the settings, read once per process."""
    return load_items(
        settings.dataset,
        cast(Split, settings.dataset_split),
        text_column=settings.text_columns,
        label_column=settings.label_column,
        labelled=settings.workload == "classify" or settings.partition != "iid",
    )
