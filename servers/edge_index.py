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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hlm.peers import hamming

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Sketches = NDArray[np.uint8]

HAS_FAISS = importlib.util.find_spec("faiss") is not None
NOWHERE = np.iinfo(np.int64).max
"""Distance where there is no entry."""


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
        self._faiss = _InvertedFile(key_bytes, self.size.lists_probed) if HAS_FAISS else None

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

    def key(self, slot: int) -> Sketches:
        """The sketch in a slot, uint8 [key_bytes]."""
        return np.asarray(self._keys[slot])

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


class _InvertedFile:
    """Search by faiss: an inverted file that grows in batches, and a tail that is scanned.

    A slot whose key changes gets a new number in the file; older numbers of the slot are ignored,
    so nothing stale is ever found. When more than half of the numbers are stale, the file is
    filled anew.
    """

    LONGEST_TAIL = 2048
    SPARE = 4
    MOST_LISTS = 1024  # filing an entry compares it with every list: more cost more than they save

    def __init__(self, key_bytes: int, lists_probed: int) -> None:
        self._bytes = key_bytes
        self._probed = lists_probed
        self._file: Any = None
        self._trained_on = 0
        self._slot_of = np.zeros(0, np.int64)  # by number in the file
        self._number_of = np.zeros(0, np.int64)  # by slot; -1 in the tail
        self._tail = np.zeros(0, np.int64)
        self._tail_keys = np.zeros((0, key_bytes), np.uint8)

    @property
    def memory(self) -> int:
        """Bytes: key and 8 bytes of id for each entry of the file, and the tail."""
        filed = 0 if self._file is None else int(self._file.ntotal) * (self._bytes + 8)
        arrays = (self._slot_of, self._number_of, self._tail, self._tail_keys)
        return filed + sum(array.nbytes for array in arrays)

    def refresh(self, keys: Sketches, changed: IntArray) -> None:
        """Take in the slots that changed (int64, unique); `keys` are those of all slots."""
        known = len(self._number_of)
        if len(keys) > known:
            # Also what came before faiss was needed.
            self._number_of = np.append(self._number_of, np.full(len(keys) - known, -1, np.int64))
            changed = np.union1d(changed, np.arange(known, len(keys)))
        self._number_of[changed] = -1
        self._tail = np.union1d(self._tail, changed)
        if self._file is None or len(self._tail) > self.LONGEST_TAIL:
            self._file_tail(keys)
        self._tail_keys = keys[self._tail]

    def search(self, queries: Sketches, k: int, alive: BoolArray) -> tuple[IntArray, IntArray]:
        """Slots and distances int64 [n, at least k]; -1 and `NOWHERE` where there are fewer."""
        near = np.ascontiguousarray(queries)
        # Replaced entries are still in the file and must not crowd out those that count.
        distances, numbers = self._file.search(near, self.SPARE * k)
        numbers = numbers.astype(np.int64)
        slots = np.where(numbers < 0, -1, self._slot_of[np.maximum(numbers, 0)])
        gone = (numbers < 0) | (self._number_of[slots] != numbers)
        parts = [np.where(gone, NOWHERE, distances.astype(np.int64))]
        found = [np.where(gone, -1, slots)]
        if len(self._tail):
            living = alive[self._tail]
            tail = self._tail[living]
            if len(tail):
                import faiss

                most = min(k, len(tail))
                tail_distances, best = faiss.knn_hamming(near, self._tail_keys[living], most)
                parts.append(tail_distances.astype(np.int64))
                found.append(tail[best])
        return np.concatenate(found, axis=1), np.concatenate(parts, axis=1)

    def _file_tail(self, keys: Sketches) -> None:
        if self._file is None or len(keys) >= 4 * self._trained_on:
            self._train(keys)
        elif len(self._slot_of) + len(self._tail) > 2 * len(keys):
            self._file.reset()
        else:
            self._append(keys, self._tail)
            return
        self._slot_of = np.zeros(0, np.int64)
        self._append(keys, np.arange(len(keys)))

    def _append(self, keys: Sketches, slots: IntArray) -> None:
        self._number_of[slots] = np.arange(len(slots)) + len(self._slot_of)
        self._slot_of = np.append(self._slot_of, slots)
        self._file.add(np.ascontiguousarray(keys[slots]))
        self._tail = np.zeros(0, np.int64)

    def _train(self, keys: Sketches) -> None:
        import faiss  # optional, and slow to import: only where an index has grown large

        self._trained_on = len(keys)
        lists = min(self.MOST_LISTS, 1 << int(2 * np.sqrt(len(keys))).bit_length() - 1)
        self._quantizer = faiss.IndexBinaryFlat(8 * self._bytes)
        self._file = faiss.IndexBinaryIVF(self._quantizer, 8 * self._bytes, lists)
        self._file.cp.niter = 8
        self._file.cp.min_points_per_centroid = 1  # coarse lists are fine, a warning is not
        self._file.nprobe = self._probed
        sample = np.linspace(0, len(keys) - 1, min(len(keys), 40 * lists)).astype(np.int64)
        self._file.train(np.ascontiguousarray(keys[sample]))
