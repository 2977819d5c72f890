"""What replayed clients route in a round: which texts, and who decides their tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import numpy as np

from clients.policy import FixedPolicy, Policy, RandomPolicy, RoutingInput, ThresholdPolicy
from clients.records import Stage, TokenRecords
from clients.resolvers.hits import AUDIT_KEPT, audit_draws
from fedhlm_app.client.draws import RoundDraw
from fedhlm_app.settings import Settings
from fedhlm_app.trace.file import Trace
from hlm.arrays import BoolArray, FloatArray, IntArray
from hlm.randomness import DrawKeys, session_keys


@dataclass(frozen=True)
class Texts:
    """Texts of some clients in one round, in order of client and batch.

    Attributes
    ----------
    client : int64 [t]
        Place of the client among those of the chunk.
    item, session, each : int64 [t]
    counted : bool [t]
        A calibration may count it.
    """

    client: IntArray
    item: IntArray
    session: IntArray
    each: IntArray
    counted: BoolArray


@dataclass(frozen=True)
class Drawer:
    """Says which texts clients route.

    Attributes
    ----------
    settings : Settings
    train_rows : sequence of int64 [n]
        Items of each client that it routes.
    lengths : mapping of int to sequence of int
        Routed tokens of every item, by the most that are wanted of it.
    """

    settings: Settings
    train_rows: Sequence[IntArray]
    lengths: Mapping[int, Sequence[int]]

    def __call__(self, clients: Sequence[int], contributions: Sequence[int], number: int) -> Texts:
        """Texts of round `number` of some clients, and of which contribution of each they are."""
        tokens_each = max(self.lengths)
        owner, items, sessions, each, counted = [], [], [], [], []
        for place, (client, contribution) in enumerate(zip(clients, contributions, strict=True)):
            draw = RoundDraw(self.settings, client, self.train_rows[client], number, contribution)
            first = True
            while draw.left > 0:
                rows, keys, most = draw.batch(tokens_each)
                draw.left -= sum(map(self.lengths[most].__getitem__, rows.tolist()))
                owner += [place] * len(rows)
                each += [most] * len(rows)
                items.append(rows)
                sessions.append(keys)
                marked = draw.calibration if first else None
                counted.append(np.zeros(len(rows), np.bool_) if marked is None else marked)
                first = False
        return Texts(
            np.array(owner, np.int64),
            np.concatenate(items),
            np.concatenate(sessions),
            np.array(each, np.int64),
            np.concatenate(counted),
        )


@contextmanager
def drawing(drawer: Drawer, apart: bool) -> Iterator[Callable[..., Callable[[], Texts]]]:
    """Takes a drawer's arguments and gives what waits for its texts.

    `apart`: a process of its own draws them, while others are routed.
    """
    if not apart:
        yield lambda *asked: partial(drawer, *asked)
        return
    # Not forked: a fork of a process in which PyTorch has threads may hang.
    with ProcessPoolExecutor(1, get_context("spawn"), _begin, (drawer,)) as pool:
        yield lambda *asked: pool.submit(_draw, *asked).result


_drawer: Drawer | None = None


def _begin(drawer: Drawer) -> None:
    """Keep what texts are drawn from, once for all rounds."""
    global _drawer
    _drawer = drawer


def _draw(clients: Sequence[int], contributions: Sequence[int], number: int) -> Texts:
    """In the other process: see `Drawer`."""
    assert _drawer is not None
    return _drawer(clients, contributions, number)


def routed(
    trace: Trace, settings: Settings, texts: Texts, clients: IntArray, thresholds: FloatArray
) -> tuple[TokenRecords, IntArray]:
    """Records of all texts, after the report's own readings, and the right tokens.

    Parameters
    ----------
    trace : Trace
    settings : Settings
    texts : Texts
    clients : int64 [c]
        Number of each client of the chunk.
    thresholds : float64 [c]
        At which each of them keeps.
    """
    begin, counts = trace.places(texts.item, settings.prompt_tokens, texts.each)
    records = TokenRecords(len(begin), int(counts.max()))
    present = np.arange(records.token.shape[1]) < counts[:, None]
    at = np.nonzero(present)
    row = begin[at[0]] + at[1]
    owner = texts.client[at[0]]
    sessions = session_keys(clients[owner], texts.session[at[0]])
    keys = DrawKeys(settings.seed + 1, sessions, trace.position[row])
    uncertainty = trace.uncertainty[settings.uncertainty][row]
    kept, audited = routes(settings, thresholds[owner], uncertainty, keys)
    local, agrees = kept & ~audited, trace.agrees[row]
    records.present[at] = True
    records.position[at], records.draft[at] = trace.position[row], trace.draft[row]
    records.uncertainty[at], records.probability[at] = uncertainty, trace.probability[row]
    records.sure[at] = records.kept[at] = kept
    records.audited[at], records.escalated[at] = audited, ~local
    records.token[at] = np.where(local, trace.draft[row], trace.token[row])
    decided = np.where(agrees, Stage.LLM_ACCEPTED, Stage.LLM_RESAMPLED)
    records.stage[at] = np.where(local, Stage.LOCAL, decided)
    records.log_prob[at], records.draft_choice[at] = trace.log_prob[row], agrees
    records.choice[at] = np.where(local, agrees, 1)
    records.measured_only[at] = local
    answers = np.full(present.shape, -1, np.int64)
    answers[at] = trace.answer[row]
    return records, answers


def routes(
    settings: Settings, thresholds: FloatArray, uncertainty: FloatArray, keys: DrawKeys
) -> tuple[BoolArray, BoolArray]:
    """Which tokens their clients keep, and which of these are audited, bool [n] each.

    Parameters
    ----------
    settings : Settings
    thresholds, uncertainty : float64 [n]
        Each token's own.
    keys : DrawKeys
        What the random numbers of these tokens are keyed by.
    """
    kept = _policy(settings, thresholds).keep(RoutingInput(uncertainty, keys))
    audited = np.zeros(len(kept), np.bool_)
    if settings.audit_rate > 0 and kept.any():
        audited = kept & (audit_draws(keys, AUDIT_KEPT) < settings.audit_rate)
    return kept, audited


def _policy(settings: Settings, thresholds: FloatArray) -> Policy:
    """The routing policy, with each token's threshold."""
    if settings.policy in ("always", "never"):
        return FixedPolicy(kept=settings.policy == "always")
    if settings.policy == "random":
        return RandomPolicy(settings.random_share)
    return ThresholdPolicy(thresholds, settings.policy)
