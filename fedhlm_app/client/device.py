"""A simulated or real device with texts of its own: the rounds and evaluations it routes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from clients.policy import Policy
from clients.records import Traffic
from fedhlm_app.client.draws import RoundDraw
from fedhlm_app.client.inference import RoutedModel
from fedhlm_app.client.routed import Routed
from fedhlm_app.data.dataset import items_of
from fedhlm_app.data.partitions import partition, split_client
from fedhlm_app.data.workload import BatchMaker, WorkloadBatch, correct
from fedhlm_app.learning.rules import certifies, reads_kept
from fedhlm_app.models.vocabulary import load_tokenizer
from fedhlm_app.settings import Settings
from hlm.arrays import IntArray
from hlm.transport import Transport


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
            See `RoundDraw`.
        """
        routed = Routed([], Traffic())
        reading = reads_kept(self.settings, server_round, calibrate)
        # What is certified is text made with the stock of cache and peers that there was: it stays.
        learning = not certifies(self.settings, server_round)
        draw = RoundDraw(self.settings, self.client, self.train_rows, server_round, contribution)
        while draw.left > 0:
            rows, sessions, each = draw.batch(self.work.tokens_each)
            work = self.work.make(rows, sessions, each)
            routed = self._route(policy, work, routed, rows, reading, learning)
            draw.left -= routed.records[-1].tokens
        return replace(routed, calibration=draw.calibration if calibrate else None)

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
