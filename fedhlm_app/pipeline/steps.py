"""The steps of a round, as functions from files to a file: what a pipeline's components call.

Models, policies, messages to the LLM, learning rules and strategy are those of a run. Drafts of
given texts depend on nothing that is decided, so each step does its part of them. Of generated text
the next draft waits for the last verdict: inference decides too, with all tiers; the next two steps
hold that against the thresholds, and have the LLM read what it has not seen.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from clients.learning.profile import Profile
from clients.policy import FixedPolicy, Policy
from clients.records import Stage, TextBatch, Traffic
from clients.resolvers.chain import Escalation, resolve_in_turn
from clients.resolvers.measuring import read_unseen
from clients.resolvers.messages import UplinkConfig
from clients.resolvers.uplink import LanguageModelUplink
from fedhlm_app.client.draws import RoundDraw
from fedhlm_app.client.inference import sampling_of, shared_seed
from fedhlm_app.client.profiles import device_profile, profile_settings
from fedhlm_app.client.routed import Routed
from fedhlm_app.client.take_back import RUN_COUNTS, learns_take_back, run_counts
from fedhlm_app.client.verifiers import verifier_of
from fedhlm_app.data.dataset import items_of
from fedhlm_app.data.workload import BatchMaker
from fedhlm_app.hosting.devices_here import DevicesHere
from fedhlm_app.hosting.llm import build_service
from fedhlm_app.hosting.pairs import check_one_tokenizer
from fedhlm_app.learning.rules import certifies
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
from hlm.state import state_from_bytes, state_to_bytes
from hlm.transport import LinkDown, Transport
from hlm.verification import Claim, Draft

Line = dict[str, Any]
"""Figures of a round, as `metrics.jsonl` has them, without bytes and seconds."""


class _Nowhere(DirectTransport):
    """The way to the LLM of a device that only drafts."""

    def __init__(self) -> None: ...

    def exchange(self, payload: bytes) -> bytes:
        """Nobody is there."""
        raise LinkDown("drafting asks nobody")


def start(settings: str, rounds: int, state: str, memory: str) -> None:
    """Write the state before the first of so many rounds; settings as JSON, here and below."""
    how = _opened(settings)
    made = Rounds(how, generating=True)
    if how.rounds != rounds:
        raise SettingsError(
            f"setting 'rounds' = {how.rounds}: this pipeline was compiled for {rounds}"
        )
    # A text that a later step begins anew is not surely read as the LLM wrote it.
    check_one_tokenizer(how, "a pipeline")
    devices, profiles = DevicesHere(how, _Nowhere(), made.clusters.assignment), {}
    if made.clusters.learned:
        agreed = profile_settings(how)
        for client in range(how.clients):
            sent = device_profile(devices.joined(client), 0).to_array(agreed)
            profiles[client] = Profile.from_array(sent, agreed)
    made.start(profiles)
    _save(state, {"rounds": made.state_dict(), "lines": [], "counts": []})
    _save(memory, devices.state())


def slm_inference(
    settings: str, number: int, state: str, memory: str, drafts: str, memory_after: str
) -> None:
    """Draft every token of round `number` (from 1), with its uncertainty and its threshold.

    Generated tokens are decided as well. `memory` has what devices and edge servers remember.
    """
    how = _opened(settings)
    made, before = _resumed(how, state)
    current = made.open(number)
    nodes = list(current.asked.values())
    told, parts = made.told(current, nodes), []
    generating = how.workload == "generate"
    # An audited draft of a given text would be verified at once.
    devices = DevicesHere(
        how if generating else how.model_copy(update={"audit_rate": 0.0}),
        _to_llm(how) if generating else _Nowhere(),
        made.clusters.assignment,
    )
    devices.restore(_load(memory))
    for place, (node, contribution) in enumerate(zip(nodes, told.contributions, strict=True)):
        device = devices.joined(node.client)
        device.heard(before["counts"])
        policy: Policy = FixedPolicy(kept=True)
        if generating:
            policy = device.policy(made.strategy.named(told.starts[place]))
        draw = RoundDraw(how, node.client, device.train_rows, number, contribution)
        batch = 0
        while draw.left > 0:
            items, sessions, each = draw.batch(device.work.tokens_each)
            work = device.work.make(items, sessions, each)
            records, _, _ = device.route(
                policy,
                work.texts,
                work.first if work.texts.given else work.new_tokens,
                learning=not certifies(how, number),
                measuring=False,
            )
            draw.left -= records.tokens
            count = len(items)
            marked = draw.calibration if batch == 0 else None
            unknown = np.full(records.token.shape, -1, np.int64)
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
                    read=np.zeros(count, np.int64),
                    records=records,
                    answers=unknown if work.answers is None else work.answers,
                )
            )
            batch += 1
        devices.finish(device, Traffic())
    if not certifies(how, number):
        devices.edges.publish()
    save(drafts, parts)
    _save(memory_after, devices.state())


def routing_decision(settings: str, drafts: str, routed: str) -> None:
    """Keep each draft, or escalate it; refuse a generated token that went another way.

    Raises
    ------
    ValueError
        Where one did.
    """
    how, tokens = _opened(settings), load(drafts)
    records = tokens.records
    at = np.nonzero(records.present)
    kept, audited = routes(
        how, tokens.threshold[at[0]], records.uncertainty[at], _keys(how, tokens, at)
    )
    if how.workload == "generate":
        if wrong := int((records.sure[at] != kept).sum()):
            raise ValueError(f"{drafts}: {wrong} tokens went another way than their threshold says")
        save(routed, [tokens])
        return
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
    transport = _to_llm(how)
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
    """What a device's router does with tokens of one batch that nobody decided, and reads after."""
    records = part.records
    at = np.nonzero(records.escalated & (records.stage < 0))
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
    if how.workload == "generate":
        for step, present in enumerate(records.present.T):
            rows = np.flatnonzero(present)
            texts.append(rows, records.token[rows, step])
    if part.reading[0]:
        known = (records.draft_choice >= 0).sum(axis=1)
        read_unseen(uplink.sender, texts, records, Traffic(), learned=True)
        part.read[:] = (records.draft_choice >= 0).sum(axis=1) - known
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
    shared = np.isin(records.stage, (Stage.CACHE, Stage.PEER, Stage.EDGE)) & records.escalated
    right |= (resampled & ~same & theirs) | unresolved | shared
    if wrong := int((records.present & ~right).sum()):
        raise ValueError(f"{decided}: {wrong} tokens are not of who is said to have decided them")
    how = _opened(settings)
    feedback, sums = validate(how, records, tokens.answers)
    sums["read"] = int(tokens.read.sum())
    if learns_take_back(how):
        sums |= run_counts(Routed([records], Traffic()))
    save_feedback(validated, tokens, feedback, sums)


def aggregator(settings: str, number: int, state: str, validated: str, after: str) -> None:
    """Let every client learn its threshold (eq. 4-6), and average in both tiers (eq. 7-8)."""
    made, before = _resumed(_opened(settings), state)
    current = made.open(number)
    nodes = list(current.asked.values())
    told = made.told(current, nodes)
    feedback, client, counted, sums = load_feedback(validated)
    owner = np.searchsorted([node.client for node in nodes], client)
    updates = made.learned(current, nodes, told, feedback, owner, counted)
    record = made.strategy.take(current, updates)
    counts = [float(sums.get(name, 0)) for name in RUN_COUNTS]
    found = {
        "rounds": made.state_dict(),
        "lines": [*before["lines"], made.line(record, sums, updates)],
        # Of a round that counted nothing there is nothing to go by.
        "counts": counts if any(counts) else before["counts"],
    }
    _save(after, found)


def result(state: str) -> list[Line]:
    """Figures of all rounds until this state."""
    return cast(list[Line], _load(state)["lines"])


def _to_llm(how: Settings) -> Transport:
    """The way to the LLM: where it is served, or here."""
    return llm_link(how) if how.llm_address else DirectTransport(build_service(how))


def _opened(settings: str) -> Settings:
    return Settings.from_sources(json.loads(settings), {})


def _keys(how: Settings, tokens: Tokens, at: tuple[IntArray, ...]) -> DrawKeys:
    """What the random numbers of some tokens are keyed by."""
    sessions = session_keys(tokens.client[at[0]], tokens.session[at[0]])
    return DrawKeys(how.seed + 1, sessions, tokens.records.position[at])


def _resumed(how: Settings, state: str) -> tuple[Rounds, dict[str, Any]]:
    """The rounds as a state has them, and the state."""
    made, found = Rounds(how, generating=True), _load(state)
    made.start()
    made.load_state_dict(found["rounds"])
    return made, found


def _load(path: str) -> dict[str, Any]:
    return state_from_bytes(Path(path).read_bytes())


def _save(path: str, state: dict[str, Any]) -> None:
    write_atomically(Path(path), state_to_bytes(state).decode())
