"""`summary.json`, the contract of a run: its schema, and the checks that keep it honest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

STAGES = ("local", "cache", "peer", "edge", "llm_accepted", "llm_resampled", "unresolved")
"""Where a token can be decided, in the order in which the stages are tried."""

SAVED = ("local", "cache", "peer", "edge")
"""Stages that decide a token without the LLM. What stayed unresolved was not saved."""

Count = Annotated[int, Field(ge=0, strict=True)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Threshold = Annotated[float, Field(allow_inf_nan=False)]


class SummaryError(ValueError):
    """A summary that breaks the contract; the message names each field and what is wrong."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Open(BaseModel):
    """A part to which a run may add figures of its own."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Resolution(_Part):
    """Tokens by the stage that decided them; they sum to the run's tokens."""

    local: Count
    cache: Count
    peer: Count
    edge: Count
    llm_accepted: Count
    llm_resampled: Count
    unresolved: Count


class Accuracy(_Part):
    """Share of held-out tokens and labels that are right; null where there is no truth."""

    token: Share | None
    label: Share | None


class Bytes(_Open):
    """Lengths of the encoded messages: devices to LLM, back, and within the edge tier."""

    uplink: Count
    downlink: Count
    edge: Count


class Thresholds(_Open):
    """Thresholds at the end of the run; clusters and clients by their number as text."""

    global_: Threshold = Field(alias="global")
    clusters: dict[str, Threshold]
    clients: dict[str, Threshold]


class Times(_Open):
    """Wall-clock seconds: the whole run, and inside the small model, large model and Flower."""

    total: Seconds
    slm: Seconds
    llm: Seconds
    flower: Seconds


class Summary(_Open):
    """The figures of a finished run. Further keys are allowed, none may be missing."""

    tokens: Annotated[int, Field(ge=1, strict=True)]
    resolution: Resolution
    trr: Share
    llm_agreement: Share
    accuracy: Accuracy
    certificate: Share
    bytes: Bytes
    threshold: Thresholds
    rounds: Count
    clients: Annotated[int, Field(ge=1, strict=True)]
    clusters: Annotated[int, Field(ge=1, strict=True)]
    seconds: Times
    settings: dict[str, Any]
    versions: dict[str, str]


def transmission_reduction(resolution: Mapping[str, int]) -> float:
    """Return the transmission reduction rate: share of tokens decided without the LLM.

    Parameters
    ----------
    resolution : Mapping[str, int]
        Tokens by stage; the stages of `STAGES`.

    Raises
    ------
    SummaryError
        When there are no tokens, for which no rate exists.
    """
    tokens = sum(resolution.values())
    if tokens == 0:
        raise SummaryError("resolution holds no tokens: there is no transmission rate of nothing")
    return sum(resolution[stage] for stage in SAVED) / tokens


def check_summary(summary: Mapping[str, Any]) -> Summary:
    """Check a summary against the contract and return it as a typed model.

    Parameters
    ----------
    summary : Mapping[str, Any]
        What `summary.json` holds or is about to hold.

    Raises
    ------
    SummaryError
        A key is missing or of the wrong kind, `resolution` does not sum to `tokens`, or `trr`
        is not (local + cache + peer + edge) / tokens.
    """
    try:
        checked = Summary.model_validate(dict(summary))
    except ValidationError as error:
        lines = [
            f"summary {'.'.join(map(str, detail['loc']))}: {detail['msg']}"
            for detail in error.errors()
        ]
        raise SummaryError("\n".join(lines)) from None
    counts = checked.resolution.model_dump()
    total = sum(counts.values())
    if total != checked.tokens:
        raise SummaryError(f"summary resolution sums to {total}, but tokens = {checked.tokens}")
    rate = transmission_reduction(counts)
    if abs(rate - checked.trr) > 1e-9:
        raise SummaryError(f"summary trr = {checked.trr}, but its resolution gives {rate}")
    return checked
