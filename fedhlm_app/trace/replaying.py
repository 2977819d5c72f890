"""Replays a run over a trace: all clients at once, by the code of the live run but for the models.

What a round draws (`RoundDraw`), how policies keep (`clients.policy`), what records and feedback
say, the rules' losses, the local steps and the strategy are those of a run. Only the forward passes
are looked up, so nothing is known of bytes and seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from clients.records import Stage, TokenRecords
from fedhlm_app.data.partitions import partition, split_client
from fedhlm_app.settings import Settings
from fedhlm_app.trace.file import Trace
from fedhlm_app.trace.rounds import Rounds, Told, validated
from fedhlm_app.trace.texts import Drawer, Texts, drawing, routed
from hlm.arrays import BoolArray, IntArray
from strategies.phases import Round
from strategies.sampling import Node
from strategies.validation import Update

CHUNK = 20_000
"""Clients routed at a time: memory does not grow with the number of clients."""


@dataclass(frozen=True)
class Replayed:
    """What came of a replay.

    Attributes
    ----------
    rounds : list of dict
        As the lines of a run's `metrics.jsonl`, without bytes and seconds.
    stages : int64 [clients, stages]
        Tokens of each client by the stage that decided them.
    correct, answered : int64 [clients]
        Tokens that are right, of those for which it is known what is right.
    """

    rounds: list[dict[str, Any]]
    stages: IntArray
    correct: IntArray
    answered: IntArray


class Replay(Rounds):
    """A run over a trace.

    Parameters
    ----------
    trace : Trace
    settings : Settings
        Of the run that is replayed.

    Raises
    ------
    SettingsError
        On settings whose run a trace cannot stand in for.
    """

    def __init__(self, trace: Trace, settings: Settings) -> None:
        trace.refuse(settings)
        super().__init__(settings)
        self.trace = trace
        shares = partition(
            trace.items,
            settings.clients,
            settings.partition,
            settings.dirichlet_alpha,
            settings.seed,
        )
        train_rows = [
            split_client(share, settings.held_out_fraction, settings.seed)[0] for share in shares
        ]
        tokens_each = 1 if settings.workload == "classify" else settings.tokens_per_prompt
        # Routed tokens of every item as a list, by the most that are wanted of it: a few small sums
        # for each client are most of what a replay of very many costs.
        every = np.arange(len(trace.labels))
        lengths = {
            most: trace.places(every, settings.prompt_tokens, most)[1].tolist()
            for most in range(1, tokens_each + 1)
        }
        self._drawer = Drawer(settings, train_rows, lengths)
        stages = (settings.clients, len(Stage))
        self._stages = np.zeros(stages, np.int64)
        self._correct, self._answered = (np.zeros(settings.clients, np.int64) for _ in "ab")

    def run(self, listen: Callable[[int, int], None] = lambda done, all_: None) -> Replayed:
        """All rounds; `listen` is told how many of how many are done."""
        lines: list[dict[str, Any]] = []
        self.start()
        with drawing(self._drawer, self.settings.clients > CHUNK) as draw:
            for number in range(1, self.settings.rounds + 1):
                current = self.open(number)
                nodes, parts, updates = list(current.asked.values()), [], []
                for begin in range(0, len(nodes), CHUNK):
                    part = nodes[begin : begin + CHUNK]
                    told = self.told(current, part)
                    clients = [node.client for node in part]
                    parts.append((part, told, draw(clients, told.contributions, number)))
                sums: dict[str, Any] = {}
                for part, told, texts in parts:
                    made, found = self._round(current, part, told, texts())
                    updates += made
                    for name, value in found.items():
                        sums[name] = sums.get(name, 0) + value
                record = self.strategy.take(current, updates)
                lines.append(self.line(record, sums, updates if len(updates) <= CHUNK else []))
                listen(number, self.settings.rounds)
        return Replayed(lines, self._stages, self._correct, self._answered)

    def _round(
        self, current: Round, nodes: list[Node], told: Told, texts: Texts
    ) -> tuple[list[Update], dict[str, Any]]:
        """What these clients send, and the sums of their tokens."""
        settings = self.settings
        clients = np.array([node.client for node in nodes], np.int64)
        records, answers = routed(self.trace, settings, texts, clients, told.starts[:, 0])
        records.measured_only &= ~told.reading[texts.client][:, None]
        self._count(clients[texts.client], records, answers)
        feedback, sums = validated(settings, records, answers)
        owner, counted = texts.client[feedback.prompt], texts.counted[feedback.prompt]
        return self.learned(current, nodes, told, feedback, owner, counted), sums

    def _count(self, clients: IntArray, records: TokenRecords, answers: IntArray) -> None:
        """Add the tokens of texts (client int64 [t] of each) to their clients' own."""
        rows, _ = at = np.nonzero(records.present)
        np.add.at(self._stages, (clients[rows], records.stage[at].astype(np.int64)), 1)
        right: BoolArray = records.present & (answers >= 0)
        np.add.at(self._answered, clients, right.sum(axis=1))
        np.add.at(self._correct, clients, (right & (records.token == answers)).sum(axis=1))
