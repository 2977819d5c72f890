"""Every way to write the recorded texts, from which link and pace on spans pay, and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedhlm_app.estimate.recording import Recorded
from fedhlm_app.estimate.terms import Taken, Terms
from hlm.risk import risk_bound
from hlm.spans import SpanCosts, count_runs, course, learned, plain_course, token_course
from hlm.spans.courses import KEPT, Course

RISKS = (0.01, 0.02, 0.05, 0.10)
"""Shares of tokens that may be kept and wrong."""
DELTA = 0.05
PAYS = 0.01
"""Share saved against the LLM alone from which spans are said to pay."""
LEAST_MS, MOST_MS = 0.01, 100_000.0
"""Round trips and paces between which a break-even is looked for."""


@dataclass(frozen=True)
class Estimate:
    """Texts written in every way; thresholds and rules from one half, figures from the other.

    Parameters
    ----------
    fitted, judged : Recorded
        The halves.
    terms : Terms
        Link, paces and prices.
    sizes : tuple of int
        Of `fedhlm_app.estimate.terms.message_bytes`.
    """

    fitted: Recorded
    judged: Recorded
    terms: Terms
    sizes: tuple[int, int]

    def ways(self) -> list[dict[str, Any]]:
        """Figures of the LLM alone, the SLM alone, and one token at a time and spans at each risk.

        Shares are of tokens. ``wrong``: kept, and not the LLM's token; ``at_most``: its expectation
        in a text like these, with 95 % confidence; ``saved``: share of what the LLM alone takes,
        of what the rule makes least of. Of spans also the longest round trip and the fastest LLM
        at which they save `PAYS`, None where there is none from `LEAST_MS` to `MOST_MS`.
        """
        judged = self.judged
        everything = token_course(np.ones_like(judged.wrong), judged.lengths)
        found = [self._figures("LLM alone", self._plain), self._figures("SLM alone", everything)]
        for risk in RISKS:
            threshold = self.fitted.threshold(risk)
            one = token_course(judged.uncertainty <= threshold, judged.lengths)
            spans = self._spans(threshold, self.terms)
            head = {"risk": risk, "threshold": threshold}
            found.append(head | self._figures("one token at a time", one))
            found.append(head | self._figures("spans", spans) | self._break_even(threshold))
        return found

    def speeds(self, threshold: float | None, round_trips: Sequence[float]) -> list[float]:
        """Tokens/s of spans at each round trip, in ms; of the LLM alone without a threshold."""
        found = []
        for round_trip_ms in round_trips:
            terms = replace(self.terms, round_trip_ms=round_trip_ms)
            way = self._plain if threshold is None else self._spans(threshold, terms)
            taken = self._taken(way, terms)
            found.append(1000 * taken.tokens / taken.ms)
        return found

    @property
    def _plain(self) -> Course:
        texts, positions = self.judged.wrong.shape
        return plain_course(texts, positions, self.judged.lengths)

    def _costs(self, terms: Terms) -> SpanCosts:
        prefix = self.judged.prompts.mean() + self.judged.lengths.mean() / 2
        return terms.costs(self.sizes, float(prefix))

    def _spans(self, threshold: float, terms: Terms) -> Course:
        sure = self.fitted.uncertainty <= threshold
        counts = count_runs(sure, self.fitted.lengths)
        rule = learned(counts, self._costs(terms), sure.shape[1])
        return course(self.judged.uncertainty <= threshold, rule, self.judged.lengths)

    def _taken(self, way: Course, terms: Terms) -> Taken:
        return terms.taken(way, self._costs(terms), self.judged.prompts)

    def _figures(self, name: str, way: Course) -> dict[str, Any]:
        taken = self._taken(way, self.terms)
        alone = self._taken(self._plain, self.terms)
        kept = way.writer == KEPT
        wrong = (kept & self.judged.wrong).sum(axis=1)
        texts, risk = len(wrong), float((wrong / self.judged.lengths).mean())
        return {
            "way": name,
            "kept": float(kept.sum()) / taken.tokens,
            "wrong": float(wrong.sum()) / taken.tokens,
            "at_most": risk_bound(risk, texts, DELTA) if kept.any() else 0.0,
            "tokens_per_second": 1000 * taken.tokens / taken.ms if taken.ms else None,
            "cost_per_million": 1e6 * taken.money / taken.tokens,
            "requests_per_text": taken.requests / texts,
            "decoded": taken.decoded / taken.tokens,
            "saved": _saved(taken, alone),
        }

    def _break_even(self, threshold: float) -> dict[str, float | None]:
        def paying(name: str) -> Callable[[float], bool]:
            def pays(value: float) -> bool:
                terms = replace(self.terms, **{name: value})
                spans = self._taken(self._spans(threshold, terms), terms)
                return _saved(spans, self._taken(self._plain, terms)) >= PAYS

            return pays

        return {
            "round_trip_ms_below": _border(paying("round_trip_ms"), LEAST_MS, MOST_MS),
            "llm_ms_above": _border(paying("llm_ms"), MOST_MS, LEAST_MS),
        }


def verdict(ways: Sequence[dict[str, Any]]) -> str:
    """One sentence on whether spans pay, from what `Estimate.ways` returns."""
    spans = [way for way in ways if way["way"] == "spans"]
    paying = [way for way in spans if way["saved"] >= PAYS]
    if paying:
        first = paying[0]
        words = (
            f"Pays from a risk of {first['risk']:.0%} on: spans write {_words(first)}, the LLM "
            f"alone {_words(ways[0])}."
        )
        if first["at_most"] > 2 * first["risk"]:
            words += (
                f" So few texts stand for at most {first['at_most']:.1%} kept and wrong: "
                "--prompts takes more."
            )
        return words
    last = spans[-1]
    needs = [
        f"{words} {last[key]:.3g} {unit}"
        for key, words, unit in (
            ("round_trip_ms_below", "a round trip below", "ms"),
            ("llm_ms_above", "an LLM slower than", "ms a token"),
        )
        # A border at the end of the search is none.
        if last[key] not in (None, LEAST_MS, MOST_MS)
    ]
    change = f"; at {last['risk']:.0%} it would with {' or '.join(needs)}" if needs else ""
    return (
        f"Does not pay here: at no risk up to {last['risk']:.0%} do spans save {PAYS:.0%}{change}."
    )


def _words(way: dict[str, Any]) -> str:
    cost = way["cost_per_million"]
    money = f" at {cost:.4g} a million" if cost else ""
    return f"{way['tokens_per_second']:.1f} tokens/s{money}"


def _saved(way: Taken, alone: Taken) -> float:
    """Share of what the LLM alone takes, in what the rule makes least of."""
    return 1 - way.aim / alone.aim if alone.aim else 0.0


def _border(pays: Callable[[float], bool], good: float, bad: float) -> float | None:
    """Where between two values it begins to pay: `bad` if it does even there, None if nowhere."""
    if not pays(good):
        return None
    if pays(bad):
        return bad
    while not 0.99 < good / bad < 1.01:
        middle = (good * bad) ** 0.5
        good, bad = (middle, bad) if pays(middle) else (good, middle)
    return good
