"""Streams of coupled draws, exactly: every draw that there is, with its chance; nothing sampled.

Of two tokens the race of exponential clocks is decided by one number, v = E0 / (E0 + E1), uniform
in [0, 1]: whoever draws with probabilities p gets token 0 where v <= p[0]. So all p[0] of both
models, in every context that a position may have, cut [0, 1] into pieces in which nothing changes.
Each choice of a piece at every position is a text of the router, device and server included.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from clients.policy import ThresholdPolicy
from hlm.randomness import session_keys
from hlm.spans import AT_ONCE, NEVER, SpanCosts, TakeBack, learned
from hlm.verification import coupled
from servers import next_tokens, verdicts
from tests.models import random_model
from tests.routed import SAMPLED, build, new_part

PROMPT, STEPS, THRESHOLD = [1, 0, 1], 3, 0.45
SLM, LLM = (random_model("llama", seed, vocab=2) for seed in (5, 6))
for model in (SLM, LLM):
    model.config.pad_token_id = model.config.bos_token_id = None  # both tokens are plain ones
CONTEXTS = [text for size in range(STEPS) for text in itertools.product((0, 1), repeat=size)]
TEXTS = list(itertools.product((0, 1), repeat=STEPS))

RULES = {
    "at-once": AT_ONCE,
    "not-at-the-end": TakeBack(1, np.array([[False, False]] * 2 + [[False, True]])),
    "two": TakeBack(2, np.array([[False, False, True]])),
    "learned": learned(np.array([[1.0, 2], [4, 5], [4, 6]]), SpanCosts(40.0, 5.0, 60.0), STEPS),
    "never": NEVER,
}


def chances_of(model) -> dict[tuple[int, ...], np.ndarray]:
    """Chances of both tokens in every context."""
    with torch.inference_mode():
        rows = [model(torch.tensor([[*PROMPT, *text]])).logits[0, -1].double() for text in CONTEXTS]
    return {text: row.softmax(-1).numpy() for text, row in zip(CONTEXTS, rows, strict=True)}


SMALL, LARGE = chances_of(SLM), chances_of(LLM)


def all_draws():
    """A number of each piece at each position, float64 [draws, STEPS], and chances [draws]."""
    middles, sizes = [], []
    for size in range(STEPS):
        cuts = {p[text][0] for p in (SMALL, LARGE) for text in CONTEXTS if len(text) == size}
        edges = np.array([0.0, *sorted(cuts), 1.0])
        middles.append((edges[1:] + edges[:-1]) / 2)
        sizes.append(np.diff(edges))
    draws = np.array(list(itertools.product(*middles)))
    return draws, np.array([np.prod(part) for part in itertools.product(*sizes)])


DRAWS, CHANCES = all_draws()


def token(probs, context, v) -> int:
    return int(v > probs[context][0])


def sure(context, draft) -> bool:
    return bool(1 - SMALL[context][draft] <= THRESHOLD)


@pytest.fixture(autouse=True)
def enumerated(monkeypatch):
    """Text i is drawn with row i of `DRAWS`, on either side of the link."""
    places = {int(key): row for row, key in enumerate(session_keys(0, np.arange(len(DRAWS))))}

    def clocks(keys, vocab):
        rows = [places[int(key)] for key in keys.sessions]
        v = torch.from_numpy(DRAWS[rows, keys.positions - len(PROMPT)])
        return torch.stack([v, 1 - v], dim=1)

    for module in (coupled, next_tokens, verdicts):
        monkeypatch.setattr(module, "exponentials", clocks)


def made(rule, window):
    """Texts of all draws, int64 [draws, STEPS], where drafts were kept, bool, and traffic."""
    setup = build(
        SLM, LLM, ThresholdPolicy(THRESHOLD), SAMPLED, rule=rule, window=window,
        sessions=len(DRAWS), context=16,
    )  # fmt: skip
    texts, records, traffic = setup.generate([np.array(PROMPT)] * len(DRAWS), STEPS)
    found = np.array([new_part(texts, row) for row in range(len(DRAWS))])
    return found, records.kept, traffic


def distribution(texts) -> np.ndarray:
    """Chance of each of `TEXTS`."""
    numbers = texts @ (2 ** np.arange(STEPS)[::-1])
    return np.bincount(numbers, CHANCES, minlength=len(TEXTS))


def written(probs) -> np.ndarray:
    """The same of a model that writes alone, from its own probabilities."""
    return np.array(
        [np.prod([probs[text[:at]][text[at]] for at in range(STEPS)]) for text in TEXTS]
    )


def promised(rule: TakeBack) -> np.ndarray:
    """Distribution of texts under a rule that looks at one draft, from probabilities alone.

    Local or not, and in which context: there the draft is kept if it is sure and, in a stream, the
    rule takes it back. Else the LLM's token stands, whose race is that of the draft.
    """
    found = np.zeros(len(TEXTS))
    for number, text in enumerate(TEXTS):
        state = {True: 1.0, False: 0.0}  # by whether the text is local
        for at, chosen in enumerate(text):
            context, after = text[:at], {True: 0.0, False: 0.0}
            x, y = SMALL[context][0], LARGE[context][0]
            # Both races by one v: P(draft = i and LLM = j).
            both = {(0, 0): min(x, y), (0, 1): max(x - y, 0), (1, 0): max(y - x, 0)}
            both[1, 1] = 1 - sum(both.values())
            for (draft, own), chance in both.items():
                certain = sure(context, draft)
                back = certain and bool(rule.take_back(np.array([1]), np.array([STEPS - at]))[0])
                for local, before in state.items():
                    keeps = certain and (local or back)
                    if (draft if keeps else own) == chosen:
                        after[keeps] += before * chance
            state = after
        found[number] = sum(state.values())
    return found


def followed(rule: TakeBack, v) -> tuple[list[int], list[bool]]:
    """One draw's text and where it was kept, by brute force."""
    text, kept, local = [], [], True
    for at in range(STEPS):
        context, ahead = tuple(text), 0
        draft = last = token(SMALL, context, v[at])
        certain, run = sure(context, draft), sure(context, draft)
        while run and ahead < rule.ahead:
            ahead, context = ahead + 1, (*context, last)
            if at + ahead < STEPS:
                last = token(SMALL, context, v[at + ahead])
                run = sure(context, last)
        local = certain and (
            local or bool(rule.take_back(np.array([ahead]), np.array([STEPS - at]))[0])
        )
        kept.append(local)
        text.append(draft if local else token(LARGE, tuple(text), v[at]))
    return text, kept


def test_the_draws_are_all_there_are():
    assert CHANCES.sum() == pytest.approx(1, abs=1e-12) and len(DRAWS) == 3 * 5 * 9
    for probs in (SMALL, LARGE):
        chosen = []
        for v in DRAWS:
            text: list[int] = []
            for at in range(STEPS):
                text.append(token(probs, tuple(text), v[at]))
            chosen.append(text)
        assert np.abs(distribution(np.array(chosen)) - written(probs)).max() < 1e-12
    assert any(sure(text, draft) for text in CONTEXTS for draft in (0, 1))


@pytest.mark.parametrize("window", [1, 64])
@pytest.mark.parametrize("name", RULES)
def test_texts_have_the_promised_distribution(name, window):
    rule = RULES[name]
    texts, kept, traffic = made(rule, window)
    assert traffic.failures == 0 < traffic.streams
    if name == "never":
        assert not kept.any()
        assert np.abs(distribution(texts) - written(LARGE)).max() < 1e-12
        return
    if rule.ahead == 1:
        assert np.abs(distribution(texts) - promised(rule)).max() < 1e-12
    expected = [followed(rule, v) for v in DRAWS]
    assert texts.tolist() == [text for text, _ in expected]
    assert kept.tolist() == [places for _, places in expected]
    # The certificate: what is kept and not the LLM's own draw, and nothing else, moves texts away.
    other = [
        [int(token(LARGE, tuple(text[:at]), v[at]) != text[at]) for at in range(STEPS)]
        for text, v in zip(texts.tolist(), DRAWS, strict=True)
    ]
    assert not np.any(np.array(other) & ~kept)
    distance = np.abs(distribution(texts) - written(LARGE)).sum() / 2
    assert 0 < distance <= CHANCES @ np.array(other).sum(axis=1) + 1e-12
