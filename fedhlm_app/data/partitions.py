"""Dividing items among clients, and each client's share into training and held-out rows."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Literal

import numpy as np

from fedhlm_app.data.files import DataError
from fedhlm_app.data.items import Items

PartitionKind = Literal["iid", "dirichlet", "by-class"]

LEAST = 2
"""Fewest items of a client: one to train on and one to hold out."""


def partition(
    items: Items,
    clients: int,
    kind: PartitionKind = "iid",
    alpha: float = 1.0,
    seed: int = 0,
) -> list[np.ndarray]:
    """Divide items among clients, once per process for the same arguments.

    ``iid`` deals shuffled items evenly. ``dirichlet`` draws, per label, the clients' shares
    from a Dirichlet distribution with ``alpha``; without labels only their sizes are uneven.
    ``by-class`` gives client i the label i modulo labels (and the following ones where clients
    are fewer than labels, so that no label is lost).
    The dividing is that of the partitioners of `flwr-datasets`; a client left with fewer than
    `LEAST` items is then given random ones of the largest clients.

    Parameters
    ----------
    items : Items
        What to divide.
    clients : int
        How many shares, at least 1.
    kind : {"iid", "dirichlet", "by-class"}
        Rule.
    alpha : float
        Evenness for ``dirichlet``, positive; small means few labels a client.
    seed : int
        0 or more; the same arguments give the same shares on every machine.

    Returns
    -------
    list of ndarray
        Per client its rows, int64, read-only, disjoint, together all items.

    Raises
    ------
    DataError
        If there are too few items, or a setting is out of range.
    """
    return list(_partition(items, clients, kind, float(alpha), seed))


@lru_cache(maxsize=8)
def _partition(
    items: Items, clients: int, kind: str, alpha: float, seed: int
) -> tuple[np.ndarray, ...]:
    """Divide, top up and freeze."""
    if clients < 1:
        raise DataError(f"clients = {clients} is not allowed; it must be at least 1")
    if seed < 0:
        raise DataError(f"seed = {seed} is not allowed; it must be 0 or more")
    if (most := len(items) // LEAST) < clients:
        raise DataError(
            f"clients = {clients} need {clients * LEAST} items ({LEAST} each), but dataset = "
            f"{items.name} has {len(items)}; "
            + (f"allowed are at most {most} clients" if most else "give it more items")
        )
    # Files are often sorted by label, and the IID partitioner deals neighbours together.
    order = np.random.default_rng(seed).permutation(len(items))
    if kind == "iid":
        shares = _dealt_evenly(order, clients)
    elif kind == "dirichlet":
        shares = _drawn_by_label(items, order, clients, alpha, seed)
    else:
        shares = _dealt_by_label(items, order, kind, clients, seed)
    _top_up(shares, np.random.default_rng([seed, clients]))
    for share in shares:
        share.flags.writeable = False
    return tuple(shares)


def _dealt_evenly(order: np.ndarray, clients: int) -> list[np.ndarray]:
    """Cut shuffled rows into even runs, as the `IidPartitioner` of `flwr-datasets` does.

    Doing so here, as in `_drawn_by_label`, spares each process of most runs the seconds that
    importing `flwr-datasets` takes, since it brings its plotting along.
    """
    return [np.array(share, dtype=np.int64) for share in np.array_split(order, clients)]


def _drawn_by_label(
    items: Items, order: np.ndarray, clients: int, alpha: float, seed: int
) -> list[np.ndarray]:
    """Divide shuffled rows, label by label, as the `DirichletPartitioner` of `flwr-datasets`."""
    if not alpha > 0:
        raise DataError(f"dirichlet-alpha = {alpha} is not allowed; it must be positive")
    generator = np.random.default_rng(seed)
    labels = items.labels(order)
    shares: list[list[int]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        ends = np.cumsum(generator.dirichlet(np.full(clients, alpha))) * len(places)
        for share, drawn in zip(shares, np.split(places, ends.astype(int)[:-1]), strict=True):
            share.extend(drawn.tolist())
    for share in shares:
        generator.shuffle(share)
    return [order[np.array(share, np.int64)].astype(np.int64) for share in shares]


def _dealt_by_label(
    items: Items, order: np.ndarray, kind: str, clients: int, seed: int
) -> list[np.ndarray]:
    """Let a partitioner of `flwr-datasets` divide the shuffled rows by their labels."""
    if kind != "by-class":
        raise DataError(f"partition = {kind!r} is unknown; allowed are iid, dirichlet, by-class")
    if not items.label_names:
        raise DataError(
            f"partition = 'by-class' needs labels, and {items.name} has none: name their column "
            f"with label-column, or set partition=iid or dirichlet"
        )
    from datasets import Dataset
    from flwr_datasets.partitioner import PathologicalPartitioner

    partitioner = PathologicalPartitioner(
        num_partitions=clients,
        partition_by="label",
        num_classes_per_partition=max(1, len(np.unique(items.labels())) - clients + 1),
        class_assignment_mode="deterministic",
        seed=seed,
    )
    partitioner.dataset = Dataset.from_dict({"label": items.labels(order), "row": order})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return [
                np.array(partitioner.load_partition(client)["row"], np.int64)
                for client in range(partitioner.num_partitions)
            ]
    except ValueError as error:
        raise DataError(
            f"partition = {kind!r} cannot divide {items.name} among {clients} clients: {error}"
        ) from error


def _top_up(shares: list[np.ndarray], generator: np.random.Generator) -> None:
    """Move random rows from the largest share until every share has `LEAST`."""
    for client in range(len(shares)):
        while len(shares[client]) < LEAST:
            largest = max(range(len(shares)), key=lambda other: len(shares[other]))
            moved = int(generator.integers(len(shares[largest])))
            shares[client] = np.append(shares[client], shares[largest][moved])
            shares[largest] = np.delete(shares[largest], moved)


def split_client(
    rows: np.ndarray, held_out_fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split one client's rows into training and held-out rows.

    Parameters
    ----------
    rows : ndarray
        int64 rows of the client.
    held_out_fraction : float
        Share to hold out, in [0, 1). Any positive share holds out at least one row and leaves
        at least one.
    seed : int
        0 or more.

    Returns
    -------
    tuple of ndarray
        Training and held-out rows, disjoint, int64.

    Raises
    ------
    DataError
        If the fraction is out of range or there are too few rows.
    """
    if not 0.0 <= held_out_fraction < 1.0:
        raise DataError(
            f"held-out-fraction = {held_out_fraction} is not allowed; it must lie in [0, 1)"
        )
    fewest = 1 if held_out_fraction == 0.0 else 2
    if len(rows) < fewest:
        raise DataError(
            f"a client has {len(rows)} items, but held-out-fraction = {held_out_fraction} needs "
            f"at least {fewest}; give fewer clients or another partition"
        )
    shuffled = np.random.default_rng([seed, int(rows[0])]).permutation(rows).astype(np.int64)
    held_out = 0
    if held_out_fraction > 0.0:
        held_out = min(max(round(held_out_fraction * len(rows)), 1), len(rows) - 1)
    return shuffled[held_out:], shuffled[:held_out]


def label_counts(items: Items, shares: list[np.ndarray]) -> np.ndarray:
    """Count each client's labels, int64 [clients, labels]."""
    labels = items.labels()
    width = len(items.label_names)
    return np.stack([np.bincount(labels[share], minlength=width) for share in shares])
