"""Which texts of its own a device routes in a round: a function of settings, client and round."""

from __future__ import annotations

import numpy as np

from fedhlm_app.learning.router import texts_of_round
from fedhlm_app.learning.rules import sums_rule
from fedhlm_app.settings import Settings
from hlm.arrays import BoolArray, IntArray


def training_sessions(server_round: int, tokens_per_round: int, texts: IntArray) -> IntArray:
    """Session numbers of a round's training texts, int64 [n].

    No two texts of a run share one: a text routes at least one token, so a round has no more texts
    than tokens. Small numbers are short on the wire. The odd ones are left to evaluation.

    Parameters
    ----------
    server_round : int
        From 1.
    tokens_per_round : int
        Most tokens of a round, >= 1.
    texts : numpy.ndarray
        int64 [n], places in the round, in 0 .. tokens_per_round - 1.
    """
    return 2 * ((server_round - 1) * tokens_per_round + texts)


class RoundDraw:
    """The texts of one round, batch by batch: how many follow depends on how long they turn out.

    Parameters
    ----------
    settings : Settings
        Of the run.
    client : int
        Of the device.
    train_rows : numpy.ndarray
        int64, its training items.
    server_round : int
        From 1.
    contribution : int
        Which of the device's contributions to a calibration this is, from 0: the server counts
        those that it has taken in. Below 0: one for each round so far.

    Attributes
    ----------
    left : int
        Tokens of the round that no batch has used yet; whoever routes a batch takes its off.
    calibration : numpy.ndarray or None
        bool, texts of the first batch that a calibration may count; None before it is drawn.
    """

    def __init__(
        self,
        settings: Settings,
        client: int,
        train_rows: IntArray,
        server_round: int,
        contribution: int = -1,
    ) -> None:
        self.settings, self.client, self.server_round = settings, client, server_round
        self.left = settings.tokens_per_round
        self.calibration: BoolArray | None = None
        self._train_rows = train_rows
        # Words that numpy takes as they are: the generator of the list, in two thirds of the time.
        words = np.array([settings.seed, client, server_round], np.uint32)
        self._generator = np.random.default_rng(words)
        self._items, turn = texts_of_round(settings, train_rows, client, server_round)
        self._number = turn - 1 if contribution < 0 else contribution
        self._made = 0

    def batch(self, tokens_each: int) -> tuple[IntArray, IntArray, int]:
        """The next texts while tokens are left: items int64 [n], sessions int64 [n], tokens each.

        Parameters
        ----------
        tokens_each : int
            Most routed tokens of one text, >= 1.
        """
        each = min(tokens_each, self.left)
        count = max(1, self.left // each)
        items = self._items
        rows = items[self._generator.choice(len(items), count, replace=count > len(items))]
        if self.calibration is None:
            rows, self.calibration = self._calibration_rows(rows)
        places = np.arange(self._made, self._made + count, dtype=np.int64)
        self._made += count
        sessions = training_sessions(self.server_round, self.settings.tokens_per_round, places)
        return rows, sessions, each

    def _calibration_rows(self, drawn: IntArray) -> tuple[IntArray, BoolArray]:
        """Items of a round's first batch, and which of them a calibration may count.

        Only first batches count: later ones fill up what early ends left, with shorter prompts.
        In generation a text is new whenever its threshold is, so the round's draw serves. Given
        texts are the same at every threshold and may count once: they are taken in one random
        order, and no further when it has come round. A contribution is always about the same
        ones, so that one that was lost can be asked for again.
        """
        # A certified router must not be calibrated on what trained it: a single item did.
        countable = self.settings.policy != "router" or len(self._train_rows) > 1
        rule = sums_rule(self.settings)
        if rule is None or rule.sequential:
            return drawn, np.full(len(drawn), countable)
        generator = np.random.default_rng([self.settings.seed, self.client])
        order = generator.permutation(self._items)
        slots = self._number * len(drawn) + np.arange(len(drawn))
        return order[slots % len(order)], (slots < len(order)) & countable
