"""An LLM server at work for a while: does its memory stay what it is?

    python -m benchmarks.soak [--minutes 10] [--devices 8] [--pace-ms 100]

Simulated devices of `benchmarks.fleet` write text after text, each over a new connection, with
`fedhlm serve llm --batch`, a process of its own at the pace of a larger model. Sessions are fewer
than texts, so that they come and go. The resident memory is looked at `SAMPLES` times. It is flat
if the largest of the last third is at most `ALLOWED` times that of the second third (the first one
is for what is taken once); the exit status is 1 if it is not.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks._pair import add_pair_options, pair_settings, server_words
from benchmarks._report import write_report
from benchmarks.fleet import Fleet, device, started
from fedhlm_app.settings import Settings
from servers.access import DeviceTokens

SAMPLES, ALLOWED = 60, 1.05


def growth(sizes: Sequence[float]) -> float:
    """The largest of the last third over the largest of the second one; at least three sizes."""
    third = len(sizes) // 3
    return max(sizes[-third:]) / max(sizes[third:-third])


def soak(seconds: float, devices: int, pace: int, settings: Settings) -> dict[str, Any]:
    """Let devices write for so long; the server's memory meanwhile, in MB."""
    fleet = Fleet(24, 0.25, settings)
    sizes: list[float] = []
    waits: list[float] = []
    with TemporaryDirectory() as folder:
        known = DeviceTokens(Path(folder) / "devices.json")
        tokens = [known.issue(f"device-{number}") for number in range(devices)]
        words = ["--token-file", str(known.file), "--pace-ms", str(pace), *server_words(settings)]
        with started([*words, "--sessions", str(2 * devices)]) as (address, own, vocab):
            over = asyncio.Event()

            async def writing(number: int) -> None:
                text = number
                while not over.is_set():
                    # A number of its own for each text: those of before are dropped some time.
                    await device(text, tokens[number], fleet, vocab, address, waits, [])
                    text += devices

            async def watching() -> None:
                begun = time.monotonic()
                for look in range(1, SAMPLES + 1):
                    # By the clock of the whole, so that late looks do not add up.
                    await asyncio.sleep(begun + look * seconds / SAMPLES - time.monotonic())
                    sizes.append(own.memory_info().rss / 1e6)
                over.set()

            async def all_of_it() -> None:
                await asyncio.gather(watching(), *map(writing, range(devices)))

            asyncio.run(all_of_it())
    return {"verdicts": len(waits), "memory_MB": sizes, "growth": growth(sizes)}


def main(words: Sequence[str] | None = None) -> int:
    """Run it and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--pace-ms", type=int, default=100)
    add_pair_options(parser)
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    found = soak(60 * options.minutes, options.devices, options.pace_ms, pair_settings(options))
    flat = found["growth"] <= ALLOWED
    sizes = found["memory_MB"]
    print(
        f"{found['verdicts']} verdicts, memory {sizes[0]:.0f} MB at first, {max(sizes):.0f} MB at "
        f"most, {found['growth']:.3f} in the last third: {'flat' if flat else 'NOT flat'}"
    )
    print(write_report("soak", {**vars(options), **found}))
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
