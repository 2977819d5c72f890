"""Prompts in, routed text out: the device's own loop between the rounds of a federation."""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from logging import getLogger

from clients.learning.feedback_store import FeedbackStore
from clients.records import Stage
from clients.resolvers.link import Link
from fedhlm_app.client.feedback_folder import (
    FeedbackFolder,
    ServedPolicy,
    TextNote,
    difference,
    digest,
    made_with,
)
from fedhlm_app.client.from_store import next_policy
from fedhlm_app.client.prompted import Ask, Continuation, PromptedModel
from fedhlm_app.client.routed import feedback_of, figures
from fedhlm_app.client.take_back import learns_take_back, run_counts
from fedhlm_app.learning.gradients import initial_policy
from fedhlm_app.settings import Settings
from hlm.transport import Transport

logger = getLogger(__name__)

_SEEDED = 1 << 31
"""Numbers of texts from here on are those of seeds."""


class ServedTexts:
    """Continues prompts with the router of the federation, and keeps what it was told.

    Several threads may have a batch written at once: each has a link, and what the LLM holds of
    its texts, to itself.

    Parameters
    ----------
    settings : Settings
        Those of the run that learns from this device.
    client : int
        The device's number; it keys random draws.
    transport : Transport
        Reaches the LLM.
    folder : FeedbackFolder, optional
        Where feedback is stored and later policies come from; without, nothing is stored.
    policy : ServedPolicy, optional
        What is served with before a folder has another; by default that of the settings.

    Raises
    ------
    ValueError
        On settings that a serving device cannot follow.
    """

    def __init__(
        self,
        settings: Settings,
        client: int,
        transport: Transport,
        folder: FeedbackFolder | None = None,
        policy: ServedPolicy | None = None,
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.device = PromptedModel(settings, client, transport)
        self._transport = transport
        self._devices = [self.device]
        self._free = [self.device]
        self._lock = threading.RLock()
        self.counts: Counter[str] = Counter()
        self.policy_problem = self.store_problem = ""
        self._made = made_with(settings)
        first = policy or next_policy(settings, initial_policy(settings), 0, 0, calibrating=True)
        # Without a store nobody learns from what the LLM would say of kept tokens.
        self.policy = first if folder is not None else replace(first, read=False)
        self._seen: object = None
        self._store = None if folder is None else FeedbackStore(folder.store_file)
        self._session = 0 if self._store is None else self._store.newest()
        self.take_up_policy()

    @property
    def in_turn(self) -> bool:
        """Whether batches wait for each other, since what they find cached depends on them."""
        return self.device.edge is not None

    @property
    def link(self) -> Link:
        """A way to the LLM that is down, where any is."""
        links = [device.uplink.link for device in self._devices]
        return next((link for link in links if link.problem), links[0])

    @property
    def threshold(self) -> float | None:
        """What uncertainties are compared with at present."""
        return self.device.threshold(self.policy)

    def session(self, seed: int | None) -> int:
        """The number of a further text; of one seed it is always the same."""
        if seed is not None:
            return _SEEDED + seed % _SEEDED
        with self._lock:
            self._session += 1
            return self._session % _SEEDED

    def answer(self, asks: Sequence[Ask]) -> list[Continuation]:
        """Continue prompts in lockstep, each with a number from `session`.

        Raises
        ------
        WireError
            See `PromptedModel.continued`.
        """
        with self._lock:
            self.take_up_policy()
            policy = self.policy
            device = self._free.pop() if self._free else self._further()
        try:
            answers = device.continued(asks, policy, drafting=self._store is not None)
        finally:
            with self._lock:
                self._free.append(device)
        with self._lock:
            for answer in answers:
                self._account(answer)
        return answers

    def _further(self) -> PromptedModel:
        """The same device for a further batch: the model is shared, a link that is down as well."""
        device = PromptedModel(self.settings, self.device.client, self._transport)
        device.uplink.link.back_off = self.device.uplink.link.back_off
        self._devices.append(device)
        return device

    def _account(self, answer: Continuation) -> None:
        self._keep(answer)
        stages, traffic = answer.stages, answer.routed.traffic
        self.counts.update(stages)
        if lost := stages[Stage.UNRESOLVED.key]:
            words = "%d of %d tokens of a text stayed unresolved: the LLM did not decide them"
            logger.warning(words, lost, len(answer.tokens))
        self.counts.update(texts=1, uplink=traffic.uplink, downlink=traffic.downlink)

    def _keep(self, answer: Continuation) -> None:
        """Write what was told of a text to the store: numbers, and no token of it."""
        if self._store is None:
            return
        routed, in_force = answer.routed, answer.policy
        told = figures(routed, self.settings)
        if learns_take_back(self.settings):
            told |= run_counts(routed)
        note = TextNote(self._made, digest(in_force.arrays), in_force.read, told)
        try:
            self._store.append(feedback_of(routed, self.settings), note.to_json())
            self.store_problem = ""
        except (sqlite3.Error, ValueError) as error:
            # Whoever asked shall have the text all the same.
            self.store_problem = str(error)
            self.counts["not-stored"] += 1
            logger.warning("feedback of a text is lost: %s", error)

    def take_up_policy(self) -> None:
        """Serve with what the policy file says, once it has changed.

        A file that cannot be used leaves the present policy in force; `policy_problem` and the
        log say why.
        """
        if self.folder is None:
            return
        try:
            status = self.folder.policy_file.stat()
        except FileNotFoundError:
            return
        seen = (status.st_mtime_ns, status.st_size, status.st_ino)
        if seen == self._seen:
            return
        self._seen = seen
        with self._told_of_problems():
            policy = self.folder.read_policy()
            if policy is None:
                return
            if differs := difference(policy.made, self._made):
                raise ValueError(
                    f"{self.folder.policy_file} is of a run with other settings ({differs}); "
                    "start `fedhlm serve device` with those of the run"
                )
            found, allowed = (
                ", ".join(f"{name} [{len(value)}]" for name, value in one.arrays.items())
                for one in (policy, self.policy)
            )
            if found != allowed:
                raise ValueError(f"{self.folder.policy_file}: arrays {found}; allowed: {allowed}")
            self.policy = policy

    @contextmanager
    def _told_of_problems(self) -> Iterator[None]:
        try:
            yield
            self.policy_problem = ""
        except ValueError as error:
            self.policy_problem = str(error)
            logger.warning("the policy stays as it is: %s", error)

    def stored_tokens(self) -> int | None:
        """Tokens in the store; None without one."""
        return None if self._store is None else len(self._store)

    def close(self) -> None:
        """Close the store."""
        if self._store is not None:
            self._store.close()
