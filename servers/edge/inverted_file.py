"""Nearest sketches among many: faiss' inverted file over Hamming distance, kept up to date.

faiss comes with the extra ``edge``; it is imported where an index has grown large, and not before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hlm.arrays import BoolArray, IntArray

Sketches = NDArray[np.uint8]

NOWHERE = np.iinfo(np.int64).max
"""Distance where there is no entry."""


class InvertedFile:
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
