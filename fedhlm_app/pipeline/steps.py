"""The steps of a round, as functions from files to a file: what a pipeline's components call.

Models, policies, messages to the LLM, learning rules and strategy are those of a run. Possible for
given texts, where a round's drafts depend on nothing that is decided in it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from clients.policy import FixedPolicy
from clients.records import Stage, TextBatch, Traffic
from clients.resolvers.chain import Escalation, resolve_in_turn
from clients.resolvers.measuring import read_unseen
from clients.resolvers.messages import UplinkConfig
from clients.resolvers.uplink import LanguageModelUplink
from fedhlm_app.client.device import Device
from fedhlm_app.client.draws import RoundDraw
from fedhlm_app.client.inference import sampling_of, shared_seed
from fedhlm_app.client.verifiers import verifier_of
from fedhlm_app.data.dataset import items_of
from fedhlm_app.data.workload import BatchMaker
from fedhlm_app.hosting.llm import build_service
from fedhlm_app.models.vocabulary import load_tokenizer, vocabulary_size
from fedhlm_app.pipeline.tokens import Tokens, load, load_feedback, save, save_feedback
from fedhlm_app.results.runs import write_atomically
from fedhlm_app.settings import Settings, SettingsError
from fedhlm_app.trace.rounds import Rounds
from fedhlm_app.trace.rounds import validated as validate
from fedhlm_app.trace.texts import routes
from fedhlm_app.transport.llm_access import llm_link
from fedhlm_app.transport.transports import DirectTransport
from hlm.arrays import IntArray
from hlm.randomness import DrawKeys, session_keys
from hlm.transport import LinkDown
from hlm.verification import Claim, Draft
from strategies.state import state_from_bytes, state_to_bytes

Line = dict[str, Any]
"""Figures of a round, as `metrics.jsonl` has them, without bytes and seconds."""


class _Nowhere(DirectTransport):
    """The way to the LLM of a device that only drafts."""

    def __init__(self) -> None: ...

    def exchange(self, payload: bytes) -> bytes:
        """Nobody is there."""
        raise LinkDown("drafting asks nobody")


def start(settings: str, rounds: int, state: str) -> None:
    """Write the state before the first of so many rounds; settings as JSON, here and below."""
    made = Rounds(_opened(settings))
    if made.settings.rounds != rounds:
        raise SettingsError(
            f"setting 'rounds' = {made.settings.rounds}: this pipeline was compiled for {rounds}"
        )
    made.start()
    _save_state(made, [], state)


def slm_inference(settings: str, number: int, state: str, drafts: str) -> None:
    """Draft every token of round `number` (from 1), with its uncertainty and its threshold."""
    how = _opened(settings)
    made, _ = _resumed(how, state)
    current = made.open(number)
    nodes = list(current.asked.values())
    told, parts = made.told(current, nodes), []
    contributions = told.contributions
    # An audited draft would be verified at once.
    drafting = how.model_copy(update={"audit_rate": 0.0})
    for place, node in enumerate(nodes):
        device = Device(drafting, node.client, _Nowhere())
        draw = RoundDraw(how, node.client, device.train_rows, number, contributions[place])
        batch = 0
        while draw.left > 0:
            items, sessions, each = draw.batch(device.work.tokens_each)
            work = device.work.make(items, sessions, each)
            records, _, _ = device.route(
                FixedPolicy(kept=True),
                work.texts,
                work.first if work.texts.given else work.new_tokens,
                learning=False,
                measuring=False,
            )
            draw.left -= records.tokens
            count = len(items)
            marked = draw.calibration if batch == 0 else None
            assert work.answers is not None
            parts.append(
                Tokens(
                    client=np.full(count, node.client),
                    batch=np.full(count, batch),
                    item=items,
                    session=sessions,
                    each=np.full(count, each),
                    threshold=np.full(count, told.starts[place, 0]),
                    counted=np.zeros(count, np.bool_) if marked is None else marked,
                    reading=np.full(count, told.reading[place]),
                    records=records,
                    answers=work.answers,
                )
            )
            batch += 1
    save(drafts, parts)


def routing_decision(settings: str, drafts: str, routed: str) -> None:
    """Keep each draft, or escalate it."""
    how, tokens = _opened(settings), load(drafts)
    records = tokens.records
    at = np.nonzero(records.present)
    kept, audited = routes(
        how, tokens.threshold[at[0]], records.uncertainty[at], _keys(how, tokens, at)
    )
    local = kept & ~audited
    records.sure[at] = records.kept[at] = kept
    records.audited[at], records.escalated[at] = audited, ~local
    records.token[at] = np.where(local, records.draft[at], -1)
    records.stage[at] = np.where(local, Stage.LOCAL, -1)
    save(routed, [tokens])


def llm_fallback(settings: str, routed: str, decided: str) -> None:
    """Have the LLM decide what was escalated, and read the rest for the report."""
    how, tokens = _opened(settings), load(routed)
    tokenizer = load_tokenizer(how.slm)
    maker = BatchMaker(
        items_of(how), tokenizer, how.workload, how.prompt_tokens, how.tokens_per_prompt
    )
    transport = llm_link(how) if how.llm_address else DirectTransport(build_service(how))
    vocab = vocabulary_size(how.slm) or len(tokenizer)
    sampling, seed, parts = sampling_of(how), shared_seed(how), []
    for client in np.unique(tokens.client).tolist():
        common = UplinkConfig(client, vocab, sampling, seed, how.free_feedback)
        uplink = LanguageModelUplink(transport, verifier_of(how), common)
        own = tokens.client == client
        for batch in np.unique(tokens.batch[own]).tolist():
            part = tokens.select(np.flatnonzero(own & (tokens.batch == batch)))
            work = maker.make(part.item, part.session, int(part.each[0]))
            _decide(how, uplink, work.texts, part)
            parts.append(part)
    save(decided, parts)


def _decide(how: Settings, uplink: LanguageModelUplink, texts: TextBatch, part: Tokens) -> None:
    """What a device's router does with the rows of one batch that do not stay."""
    records = part.records
    at = np.nonzero(records.escalated)
    if len(at[0]):
        drafts = torch.from_numpy(records.draft[at])
        escalation = Escalation(
            texts=texts,
            rows=at[0],
            steps=at[1],
            positions=records.position[at],
            draft=Draft(drafts, torch.ones(len(drafts)).double(), None, Claim(drafts)),
            keys=_keys(how, part, at),
            hidden=None,
            uncertainty=records.uncertainty[at],
            audited=records.audited[at],
            spans=np.zeros(len(drafts), np.int64),
        )
        decided = resolve_in_turn([uplink], escalation)
        records.token[at], records.stage[at] = decided.tokens, decided.stages
        for feedback in decided.feedback:
            records.note_feedback(feedback)
        records.choice[at] = np.where(decided.is_llm_choice, 1, records.choice[at])
    if part.reading[0]:
        read_unseen(uplink.sender, texts, records, Traffic(), learned=True)
    read_unseen(uplink.sender, texts, records, Traffic())


def result_validator(settings: str, decided: str, validated: str) -> None:
    """Check what was decided, and make of it what clients learn from.

    Raises
    ------
    ValueError
        Where a token is nobody's, or not of who is said to have decided it.
    """
    tokens = load(decided)
    records = tokens.records
    local = records.stage == Stage.LOCAL
    accepted, resampled = (
        records.stage == stage for stage in (Stage.LLM_ACCEPTED, Stage.LLM_RESAMPLED)
    )
    same, theirs = records.token == records.draft, records.choice == 1
    unresolved = records.unresolved & same
    right = (local & ~records.escalated & same) | (accepted & same & theirs)
    right |= (resampled & ~same & theirs) | unresolved
    if wrong := int((records.present & ~right).sum()):
        raise ValueError(f"{decided}: {wrong} tokens are not of who is said to have decided them")
    feedback, sums = validate(_opened(settings), records, tokens.answers)
    save_feedback(validated, tokens, feedback, sums)


def aggregator(settings: str, number: int, state: str, validated: str, after: str) -> None:
    """Let every client learn its threshold (eq. 4-6), and average in both tiers (eq. 7-8)."""
    made, lines = _resumed(_opened(settings), state)
    current = made.open(number)
    nodes = list(current.asked.values())
    told = made.told(current, nodes)
    feedback, client, counted, sums = load_feedback(validated)
    owner = np.searchsorted([node.client for node in nodes], client)
    updates = made.learned(current, nodes, told, feedback, owner, counted)
    record = made.strategy.take(current, updates)
    _save_state(made, [*lines, made.line(record, sums, updates)], after)


def result(state: str) -> list[Line]:
    """Figures of all rounds until this state."""
    return cast(list[Line], state_from_bytes(Path(state).read_bytes())["rounds"])


def _opened(settings: str) -> Settings:
    return Settings.from_sources(json.loads(settings), {})


def _keys(how: Settings, tokens: Tokens, at: tuple[IntArray, ...]) -> DrawKeys:
    """What the random numbers of some tokens are keyed by."""
    sessions = session_keys(tokens.client[at[0]], tokens.session[at[0]])
    return DrawKeys(how.seed + 1, sessions, tokens.records.position[at])


def _resumed(how: Settings, state: str) -> tuple[Rounds, list[Line]]:
    """The rounds as a state has them, and the figures of those done."""
    made, found = Rounds(how), state_from_bytes(Path(state).read_bytes())
    made.start()
    made.strategy.load_state_dict(found["strategy"])
    return made, found["rounds"]


def _save_state(made: Rounds, lines: list[Line], path: str) -> None:
    kept = {"strategy": made.strategy.state_dict(), "rounds": lines}
    write_atomically(Path(path), state_to_bytes(kept).decode())
