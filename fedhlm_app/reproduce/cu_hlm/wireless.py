"""Methods over a Rayleigh channel: tokens a second, and the table of what each sends."""

from __future__ import annotations

from fedhlm_app.reproduce.cu_hlm.channel import RayleighChannel
from fedhlm_app.reproduce.cu_hlm.inputs import (
    BANDWIDTH_HZ,
    BANDWIDTHS_HZ,
    COMPARED,
    PRONE,
    ROUND_TRIP_S,
    SHARE,
    SNR_DB,
    SNRS_DB,
    Inputs,
    channels,
)
from fedhlm_app.reproduce.pieces import Cell, Figure, Finding, Measured, Piece, Table

DRAWN = ("hlm", "u-hlm", "cu-hlm", "u-hlm" + SHARE, "cu-hlm" + SHARE, "coupled", "fedhlm")


def _speed(inputs: Inputs, method: str, channel: RayleighChannel) -> Measured:
    name = channel.link(ROUND_TRIP_S).name
    return Measured.of([run[method]["tokens_per_second"][name] for run in inputs.runs])


def made_throughput(inputs: Inputs) -> Finding:
    """Tokens a second against mean SNR, and against bandwidth."""
    by_snr = [(snr, RayleighChannel(BANDWIDTH_HZ, snr)) for snr in SNRS_DB]
    by_width = [(width / 1e6, RayleighChannel(width, SNR_DB)) for width in BANDWIDTHS_HZ]
    panels = [
        Figure(
            "lines",
            {m: [(x, _speed(inputs, m, channel).mean) for x, channel in sweep] for m in DRAWN},
            across,
            "tokens a second",
        )
        for sweep, across in (
            (by_snr, f"mean SNR in dB, {BANDWIDTH_HZ / 1e6:g} MHz"),
            (by_width, f"bandwidth in MHz, {SNR_DB:g} dB"),
        )
    ]
    rows: list[tuple[Cell, ...]] = [
        (channel.link(ROUND_TRIP_S).name, *(_speed(inputs, method, channel) for method in DRAWN))
        for channel in channels()
    ]
    worst = [RayleighChannel(BANDWIDTH_HZ, SNRS_DB[0]), RayleighChannel(BANDWIDTHS_HZ[0], SNR_DB)]
    gains = {
        method: max(_speed(inputs, method, c).mean / _speed(inputs, "hlm", c).mean for c in worst)
        for method in DRAWN
    }
    vocab = inputs.tokens[0].sorted_probs.shape[1]
    good = RayleighChannel(BANDWIDTHS_HZ[-1], SNR_DB)
    level = _speed(inputs, "cu-hlm", good).mean / _speed(inputs, "hlm", good).mean
    words = (
        f"On the poorest channels CU-HLM at its risk-averse threshold makes {gains['cu-hlm']:,.1f} "
        f"times HLM's tokens a second and U-HLM {gains['u-hlm']:,.1f} times; where a quarter of "
        f"the tokens is sent, CU-HLM {gains['cu-hlm' + SHARE]:,.0f}, U-HLM "
        f"{gains['u-hlm' + SHARE]:,.1f} and ours {gains['fedhlm']:,.0f} times. Published are up to "
        "206 times for CU-HLM and 2.54 for U-HLM. What there is to win is HLM's upload, a "
        f"distribution over {vocab:,} tokens here and over 32,000 there, against compute and round "
        f"trips, of which the abstract says nothing. At {BANDWIDTHS_HZ[-1] / 1e6:g} MHz these "
        f"decide: CU-HLM is at {level:,.2f} times HLM."
    )
    return Finding(words, Table(("Channel", *DRAWN), rows), panels)


def made_methods(inputs: Inputs) -> Finding:
    """Skip rate, bytes, agreement and accuracy of every method."""
    names = [*COMPARED, *(name + how for how in (PRONE, SHARE) for name in ("u-hlm", "cu-hlm"))]
    published = {"u-hlm": "skips .459, accuracy .975", "cu-hlm": "skips .748, accuracy .974"}
    rows = []
    for name in names:
        runs = [run[name] for run in inputs.runs]
        up = Measured.of([run["bytes_per_token"]["uplink"] for run in runs])
        hlm = Measured.of([run["hlm"]["bytes_per_token"]["uplink"] for run in inputs.runs])
        rows.append(
            (
                name,
                Measured.of([run["trr"] for run in runs]),
                up,
                1 - up.mean / hlm.mean,
                _share(inputs, name, "token"),
                _share(inputs, name, "label"),
                Measured.of([run["certificate"] or 0.0 for run in runs]),
                published.get(name),
            )
        )
    prone = Measured.of([run["cu-hlm" + PRONE]["trr"] for run in inputs.runs]).mean
    skipped, fewer = rows[names.index("cu-hlm")][1].mean, rows[names.index("cu-hlm")][3]
    words = (
        f"CU-HLM decides {skipped:.1%} of tokens on the device and sends {fewer:.1%} fewer bytes "
        "up than HLM; the abstract says 74.8 % and 97.4 % of the vocabulary. Accuracy is relative "
        "to the LLM's own on the same texts; with so few texts its interval is wide, and above 1 "
        "it is the luck of the draw. Which share a line's threshold skips is the pair's: the "
        f"risk-averse one {skipped:.1%} here and the risk-prone one {prone:.1%}."
    )
    columns = (
        "Method", "Skipped", "Bytes up a token", "Fewer than HLM", "Token accuracy / LLM's",
        "Label accuracy / LLM's", "Kept and wrong", "Paper",
    )  # fmt: skip
    return Finding(words, Table(columns, rows))


def _share(inputs: Inputs, name: str, kind: str) -> Measured | None:
    """A method's accuracy over the LLM's; None where there is none."""
    pairs = [(run[name]["accuracy"][kind], run["llm"]["accuracy"][kind]) for run in inputs.runs]
    found = [own / best for own, best in pairs if own is not None and best]
    return Measured.of(found) if found else None


THROUGHPUT = Piece("throughput", "Throughput over a Rayleigh channel", made_throughput)
METHODS = Piece("methods", "Methods side by side", made_methods)
