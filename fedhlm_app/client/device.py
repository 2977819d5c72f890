"""A simulated or real device with texts of its own: the rounds and evaluations it routes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from clients.policy import Policy
from clients.records import Traffic
from fedhlm_app.client.inference import RoutedModel
from fedhlm_app.client.routed import Routed
from fedhlm_app.data.dataset import items_of
from fedhlm_app.data.partitions import partition, split_client
from fedhlm_app.data.workload import BatchMaker, WorkloadBatch, correct
from fedhlm_app.learning.router import texts_of_round
from fedhlm_app.learning.rules import sums_rule
from fedhlm_app.models.vocabulary import load_tokenizer
from fedhlm_app.settings import Settings
from hlm.arrays import BoolArray, IntArray
from hlm.transport import Transport


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


def evaluation_sessions(count: int) -> IntArray:
    """Session numbers of the first `count` held-out texts, the same at each evaluation."""
    return 2 * np.arange(count, dtype=np.int64) + 1


class Device(RoutedModel):
    """One client: its data, its small model, its way to the LLM.

    Parameters
    ----------
    settings : Settings
        Of the run.
    client : int
        Index of the device's data partition.
    transport : Transport
        Reaches the LLM service.
    edge_link : callable, optional
        Cluster number to the transport of its edge server; needed with the edge tier.
    """

    def __init__(
        self,
        settings: Settings,
        client: int,
        transport: Transport,
        edge_link: Callable[[int], Transport] | None = None,
    ) -> None:
        super().__init__(settings, client, transport, edge_link)
        items = items_of(settings)
        shares = partition(
            items,
            settings.clients,
            settings.partition,
            settings.dirichlet_alpha,
            settings.seed,
        )
        if client >= len(shares):
            raise ValueError(f"partition-id = {client}: the run has clients 0 .. {len(shares) - 1}")
        self.train_rows, self.held_out_rows = split_client(
            shares[client], settings.held_out_fraction, settings.seed
        )
        tokenizer = load_tokenizer(settings.slm)
        self.work = BatchMaker(
            items,
            tokenizer,
            settings.workload,
            settings.prompt_tokens,
            settings.tokens_per_prompt,
        )

    def train_round(
        self,
        policy: Policy,
        server_round: int,
        calibrate: bool = False,
        contribution: int = -1,
    ) -> Routed:
        """Route `tokens-per-round` tokens of this device's training texts.

        Texts are drawn by (seed, client, round), so a repeated round is the same round.

        Parameters
        ----------
        policy : Policy
            Keeps or escalates.
        server_round : int
            From 1.
        calibrate : bool
            The round gathers sums for a guarantee: kept tokens are read by the LLM too, unless
            audits stand for them, and the prompts that may count are marked.
        contribution : int
            Which of the device's contributions to a calibration this is, from 0: the server counts
            those that it has taken in. Below 0: one for each round so far.
        """
        budget = self.settings.tokens_per_round
        generator = np.random.default_rng([self.settings.seed, self.client, server_round])
        routed = Routed([], Traffic())
        rule, made = sums_rule(self.settings), 0
        reading = calibrate and rule is not None and rule.reads_kept_tokens
        items, turn = texts_of_round(self.settings, self.train_rows, self.client, server_round)
        calibration = None
        while budget > 0:
            each = min(self.work.tokens_each, budget)
            count = max(1, budget // each)
            rows = generator.choice(items, count, replace=count > len(items))
            if calibration is None:
                number = turn - 1 if contribution < 0 else contribution
                rows, calibration = self._calibration_rows(rows, items, number)
            sessions = training_sessions(
                server_round, self.settings.tokens_per_round, made + np.arange(count)
            )
            made += count
            work = self.work.make(rows, sessions, each)
            routed = self._route(policy, work, routed, rows, reading)
            budget -= routed.records[-1].tokens
        return replace(routed, calibration=calibration if calibrate else None)

    def _calibration_rows(
        self, drawn: IntArray, items: IntArray, number: int
    ) -> tuple[IntArray, BoolArray]:
        """Items of a round's first batch, and which of them a calibration may count.

        Only first batches count: later ones fill up what early ends left, with shorter prompts.
        In generation a text is new whenever its threshold is, so the round's draw serves. Given
        texts are the same at every threshold and may count once: they are taken in one random
        order, and no further when it has come round. Contribution `number` (from 0) is always
        about the same ones, so that one that was lost can be asked for again.
        """
        # A certified router must not be calibrated on what trained it: a single item did.
        countable = self.settings.policy != "router" or len(self.train_rows) > 1
        rule = sums_rule(self.settings)
        if rule is None or rule.sequential:
            return drawn, np.full(len(drawn), countable)
        generator = np.random.default_rng([self.settings.seed, self.client])
        order = generator.permutation(items)
        slots = number * len(drawn) + np.arange(len(drawn))
        return order[slots % len(order)], (slots < len(order)) & countable

    def evaluate(self, policy: Policy) -> Routed:
        """Route held-out texts, the same ones each time."""
        rows = self.held_out_rows[: self.settings.evaluate_prompts]
        if not len(rows):
            return Routed([], Traffic())
        work = self.work.make(rows, evaluation_sessions(len(rows)))
        nothing = Routed([], Traffic())
        # Held-out texts come again: a cache that kept them would look better each time.
        return self._route(policy, work, nothing, np.asarray(rows), learning=False)

    def _route(
        self,
        policy: Policy,
        work: WorkloadBatch,
        before: Routed,
        rows: IntArray,
        reading: bool = False,
        learning: bool = True,
    ) -> Routed:
        amount = work.first if work.texts.given else work.new_tokens
        records, traffic, read = self.route(
            policy, work.texts, amount, reading=reading, learning=learning
        )
        right, answered = correct(work, records)
        return Routed(
            [*before.records, records],
            before.traffic + traffic,
            before.correct + right,
            before.answered + answered,
            [*before.rows, rows],
            before.read + int(read.sum()),
        )
