"""What a context's key is worth by its kind and length: hits, and how many of them are right.

Run ``python -m benchmarks.edge_keys``; figures go to ``benchmarks/out/edge_keys.json``. In each
world of `benchmarks._peers_world` devices route their texts with the LLM alone, and every place
that is escalated is noted. Then, for each kind of key, a place is looked up among those of the
*other* devices of its cluster in earlier rounds. A hit is a place whose nearest entry is within a
gate; it is right if that entry's token is the LLM's own choice there. The share of drafts that are
right in the same places stands beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._pair import add_pair_options, load_models, pair_settings
from benchmarks._report import write_report
from benchmarks.peers import Federation, Recorder, Setup
from clients.records import Traffic
from clients.resolvers.chain import Asked, Escalation, Resolution
from hlm.peers.agreement import SketchMaker, distance_of_cosine, hamming, unit_rows

GATES = (0.998, 0.995, 0.98, 0.95)
Distances = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]]


class Places(Recorder):
    """Also notes the step, which tells rounds apart."""

    def __init__(self) -> None:
        super().__init__()
        self.rounds: list[int] = []
        self._last = -1

    def learn(
        self, escalation: Escalation, final: Resolution[Any], asked: Asked[None] | None
    ) -> Traffic:
        """Contexts, drafts and verified tokens of one step, and its round."""
        step = int(escalation.steps[0])
        new = not self.rounds or step < self._last
        self.rounds.append((self.rounds[-1] if self.rounds else -1) + int(new))
        self._last = step
        return super().learn(escalation, final, asked)


@dataclass
class Noted:
    """Every escalated place: client, round, draft and the LLM's token int64 [n], its context."""

    client: NDArray[np.int64]
    round: NDArray[np.int64]
    draft: NDArray[np.int64]
    top: NDArray[np.int64]
    hidden: NDArray[np.float32]


def noted(federation: Federation) -> Noted:
    """Run a federation whose chains hold `Places`; what they noted."""
    recorders = [Places() for _ in federation.chains]
    for chain, recorder in zip(federation.chains, recorders, strict=True):
        chain.insert(0, recorder)
    federation.run()
    rows: list[NDArray[np.int64]] = []
    hidden = []
    for client, recorder in enumerate(recorders):
        for number, (contexts, drafted, decided) in zip(
            recorder.rounds, recorder.steps, strict=True
        ):
            same = np.full(len(drafted), client), np.full(len(drafted), number)
            rows.append(np.stack([*same, drafted, decided]))
            hidden.append(np.asarray(contexts, np.float32))
    clients, numbers, drafts, tokens = np.concatenate(rows, axis=1)
    return Noted(clients, numbers, drafts, tokens, np.concatenate(hidden))


def kinds(hidden: NDArray[np.float32]) -> Iterator[tuple[str, int, Distances, list[float]]]:
    """Name, bytes, distances and gates of each kind of key."""
    unit = unit_rows(hidden).astype(np.float64)
    scaled = np.round(127 * unit / np.abs(unit).max(axis=1, keepdims=True))
    octets = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    for name, size, keys in (("float32", 4, unit), ("int8", 1, octets)):
        cosines = partial_cosine(keys)
        yield name, size * hidden.shape[1], cosines, [1 - gate for gate in GATES]
    for bits in (64, 128, 256):
        sketches, _ = SketchMaker(hidden.shape[1], bits).sketch(hidden)
        gates = [float(distance_of_cosine(gate, bits)) for gate in GATES]
        yield f"{bits} bits", bits // 8, partial_hamming(sketches), gates


def partial_cosine(keys: NDArray[np.float64]) -> Distances:
    """One minus the cosine of every question to every entry."""
    return lambda questions, entries: np.asarray(1 - keys[questions] @ keys[entries].T)


def partial_hamming(sketches: NDArray[np.uint8]) -> Distances:
    """Differing bits of every question and entry."""
    return lambda questions, entries: hamming(sketches[questions], sketches[entries]).astype(float)


def measure(places: Noted, clusters: int, distances: Distances, gates: list[float]) -> list[Any]:
    """Hits, right ones and right drafts for each gate."""
    nearest = np.full(len(places.client), np.inf)
    token = np.full(len(places.client), -1, np.int64)
    for cluster in range(clusters):
        member = places.client % clusters == cluster
        for number in range(1, int(places.round.max()) + 1):
            entries = np.flatnonzero(member & (places.round < number))
            questions = np.flatnonzero(member & (places.round == number))
            apart = distances(questions, entries)
            apart[places.client[questions][:, None] == places.client[entries]] = np.inf
            best = apart.argmin(axis=1)
            nearest[questions] = apart[np.arange(len(questions)), best]
            token[questions] = places.top[entries[best]]
    asked = places.round > 0
    found = []
    for cosine, gate in zip(GATES, gates, strict=True):
        hit = asked & (nearest <= gate + 1e-9)
        some = bool(hit.any())
        found.append(
            {
                "gate": cosine,
                "hits": float(hit.sum() / asked.sum()),
                "right": float((token == places.top)[hit].mean()) if some else None,
                "local": float((places.draft == places.top)[hit].mean()) if some else None,
            }
        )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", nargs="+", default=["shared", "apart", "news"])
    for name, default in (("rounds", 12), ("clients", 10), ("prompts", 6)):
        parser.add_argument(f"--{name}", type=int, default=default)
    add_pair_options(parser)
    options = parser.parse_args(arguments)
    pair = load_models(pair_settings(options))
    sized = {name: getattr(options, name) for name in ("rounds", "clients", "prompts")}
    results = []
    for world in options.worlds:
        setup = Setup(world, peer_mode="off", clusters=2, **sized)
        places = noted(Federation(setup, pair))
        for name, size, distances, gates in kinds(places.hidden):
            figures = measure(places, setup.clusters, distances, gates)
            results.append({"world": world, "key": name, "bytes": size, "gates": figures})
            print(world, name, size, figures, flush=True)
    print(write_report("edge_keys", {"options": vars(options), "results": results}))


if __name__ == "__main__":
    main()
