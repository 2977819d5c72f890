"""The memory of an edge server: tokens by the sketch of their context, bounded and searchable.

Entries live in slots. Up to a few thousand are compared with every question outright; beyond, a
faiss index narrows the search (Hamming distance over an inverted file), if faiss is installed.
Room is shared fairly: a client that has used up its quota replaces its own oldest entry, and when
all slots are taken the client that holds most makes room, so that nobody can push the others out.
"""

from __future__ import annotations

import importlib.util
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hlm.arrays import BoolArray, IntArray
from hlm.peers.agreement import hamming
from servers.edge.inverted_file import NOWHERE, InvertedFile

Sketches = NDArray[np.uint8]

HAS_FAISS = importlib.util.find_spec("faiss") is not None


@dataclass(frozen=True)
class IndexSize:
    """Bounds and search effort of a `SketchIndex`.

    Attributes
    ----------
    capacity : int
        Most entries, >= 1. All memory is proportional to it.
    quota : int
        Most entries of one client, >= 1.
    max_age : int
        Entries not renewed for more than this many `tick`s leave; 0 keeps them.
    exact_below : int
        Up to this many entries every one is compared; with more faiss searches, if there is one.
    lists_probed : int
        Inverted lists that faiss reads for a question; more find more and take longer.
    """

    capacity: int = 65_536
    quota: int = 16_384
    max_age: int = 0
    exact_below: int = 8_192
    lists_probed: int = 8

    def __post_init__(self) -> None:
        for name in ("capacity", "quota", "exact_below", "lists_probed"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.max_age < 0:
            raise ValueError(f"max_age = {self.max_age}: must not be below 0")


@dataclass(frozen=True)
class Neighbours:
    """The nearest entries of each question, nearest first; equal distances by slot.

    Attributes
    ----------
    slots : ndarray of int64 [questions, k]
        -1 where there are fewer than k.
    distances : ndarray of int64 [questions, k]
        Differing bits; `NOWHERE` where there is no entry.
    """

    slots: IntArray
    distances: IntArray


class SketchIndex:
    """Entries (client, sketch, token, verified) with nearest-neighbour search.

    Parameters
    ----------
    key_bytes : int
        Length of a sketch, a positive multiple of 8.
    size : IndexSize
        Bounds.

    Attributes
    ----------
    clients, tokens : ndarray of int64 [capacity]
    verified : ndarray of bool [capacity]
    """

    def __init__(self, key_bytes: int, size: IndexSize | None = None) -> None:
        if key_bytes < 8 or key_bytes % 8:
            raise ValueError(f"key_bytes = {key_bytes}: allowed are positive multiples of 8")
        self.size = IndexSize() if size is None else size
        self.key_bytes = key_bytes
        self._now = 0
        self._allocated = 0
        self._allocate(min(1024, self.size.capacity))
        self._free: list[int] = []
        self._used = 0
        # Slots of each client by context, oldest first: an entry for the same context replaces.
        self._held: dict[int, OrderedDict[bytes, int]] = {}
        self._faiss = InvertedFile(key_bytes, self.size.lists_probed) if HAS_FAISS else None

    def __len__(self) -> int:
        """Number of entries."""
        return self._used - len(self._free)

    @property
    def memory(self) -> int:
        """Bytes held by entries and search structures, apart from Python's own bookkeeping."""
        arrays = (self._keys, self.clients, self.tokens, self.verified, self._alive, self._born)
        return sum(array.nbytes for array in arrays) + (self._faiss.memory if self._faiss else 0)

    def count(self, client: int) -> int:
        """Entries of one client."""
        return len(self._held.get(client, ()))

    def add(self, keys: Sketches, clients: IntArray, tokens: IntArray, verified: BoolArray) -> None:
        """Add entries, in order; the same client and context again replaces the older entry.

        Parameters
        ----------
        keys : ndarray of uint8 [n, key_bytes]
        clients, tokens : ndarray of int64 [n]
        verified : ndarray of bool [n]

        Raises
        ------
        ValueError
            If the sketches have another width.
        """
        if keys.ndim != 2 or keys.shape[1] != self.key_bytes:
            raise ValueError(f"keys have shape {keys.shape}: expected [n, {self.key_bytes}]")
        slots = np.empty(len(keys), np.int64)
        moved = np.zeros(len(keys), np.bool_)
        for i, (key, client) in enumerate(zip(keys, clients.tolist(), strict=True)):
            slots[i], moved[i] = self._slot_for(key.tobytes(), client)
            # At once, because the next entry may have to make room and looks at these.
            self._alive[slots[i]] = True
            self.clients[slots[i]] = client
            self._keys[slots[i]] = key
        self.tokens[slots] = tokens
        self.verified[slots] = verified
        self._born[slots] = self._now
        if self._faiss is not None and self._used > self.size.exact_below:
            self._faiss.refresh(self._keys[: self._used], np.unique(slots[moved]))

    def tick(self) -> None:
        """Let time pass; entries beyond `max_age` leave."""
        self._now += 1
        if self.size.max_age:
            old = self._alive & (self._now - self._born > self.size.max_age)
            for slot in np.flatnonzero(old).tolist():
                self._release(slot)

    def drop_client(self, client: int) -> None:
        """Remove every entry of a client."""
        for slot in list(self._held.get(client, {}).values()):
            self._release(slot)

    def nearest(self, queries: Sketches, k: int) -> Neighbours:
        """The k nearest entries of every question (uint8 [n, key_bytes])."""
        count = self._used
        if self._faiss is not None and count > self.size.exact_below:
            slots, distances = self._faiss.search(queries, k, self._alive)
            there = slots >= 0
            alive = there & self._alive[np.where(there, slots, 0)]
            distances = np.where(alive, distances, NOWHERE)
        else:
            distances = hamming(queries, self._keys[:count])
            distances[:, ~self._alive[:count]] = NOWHERE
            if count > k:
                slots = np.argpartition(distances, k - 1, axis=1)[:, :k]
            else:
                slots = np.broadcast_to(np.arange(count), distances.shape)
            distances = np.take_along_axis(distances, slots, axis=1)
        slots = np.where(distances == NOWHERE, -1, slots)
        order = np.lexsort((slots, distances), axis=1)[:, :k]
        return Neighbours(
            np.take_along_axis(slots, order, axis=1),
            np.take_along_axis(distances, order, axis=1),
        )

    def _slot_for(self, key: bytes, client: int) -> tuple[int, bool]:
        """The slot for an entry, and whether its key is new there."""
        held = self._held.setdefault(client, OrderedDict())
        if key in held:
            held.move_to_end(key)
            return held[key], False
        if len(held) >= min(self.size.quota, self.size.capacity):
            self._release(next(iter(held.values())))
        elif len(self) >= self.size.capacity:
            fullest = max(self._held, key=lambda other: (len(self._held[other]), other))
            self._release(next(iter(self._held[fullest].values())))
        if self._free:
            slot = self._free.pop()
        else:
            slot, self._used = self._used, self._used + 1
            if slot >= self._allocated:
                self._allocate(min(2 * self._allocated, self.size.capacity))
        # The client may have lost its last entry to make room for its own.
        self._held.setdefault(client, held)[key] = slot
        return slot, True

    def _release(self, slot: int) -> None:
        client = int(self.clients[slot])
        held = self._held[client]
        del held[self._keys[slot].tobytes()]
        if not held:
            del self._held[client]
        self._alive[slot] = False
        self._free.append(slot)

    def _allocate(self, slots: int) -> None:
        def grown(name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
            array = np.zeros((slots, *shape), dtype)
            array[: self._allocated] = getattr(self, name, np.zeros((0, *shape), dtype))
            setattr(self, name, array)

        grown("_keys", (self.key_bytes,), np.uint8)
        grown("clients", (), np.int64)
        grown("tokens", (), np.int64)
        grown("verified", (), np.bool_)
        grown("_alive", (), np.bool_)
        grown("_born", (), np.int64)
        self._allocated = slots

    _keys: Sketches
    _alive: BoolArray
    _born: IntArray
    clients: IntArray
    tokens: IntArray
    verified: BoolArray
