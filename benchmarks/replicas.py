"""Verdicts a second of two replicas of the LLM on Ray Serve against one, in one run.

    python -m benchmarks.replicas [--llm-ms 100] [--devices 16] [--seconds 20] [--turns 2]

No forward pass takes less than ``--llm-ms``, as of a larger model on processors or a GPU of its
own, so that replicas do not wait for each other's cores. Simulated devices (`benchmarks.fleet`)
with a token each ask without a pause, text after text; one replica and two take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import ray
from ray import serve

from benchmarks._pair import add_pair_options, pair_settings
from benchmarks._report import write_report
from benchmarks.fleet import Fleet, device
from fedhlm_app.hosting.pairs import ids_on_the_wire
from fedhlm_app.hosting.replicas import deployment
from fedhlm_app.models.vocabulary import vocabulary_size
from servers.access import DeviceTokens

ROOT = Path(__file__).resolve().parent.parent


def asked(
    fleet: Fleet, vocab: int, tokens: list[str], port: int, seconds: float
) -> dict[str, float]:
    """What all devices get in so many seconds, once each has written a text to warm up."""
    waits: list[float] = []

    async def write(number: int) -> None:
        await device(number, tokens[number], fleet, vocab, ("127.0.0.1", port), waits, [])

    async def write_on(number: int) -> None:
        while True:
            await write(number)

    async def all_devices() -> float:
        await asyncio.gather(*map(write, range(len(tokens))))
        waits.clear()
        begin = time.perf_counter()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*map(write_on, range(len(tokens))))
        return time.perf_counter() - begin

    passed = asyncio.run(all_devices())
    if not waits:
        raise RuntimeError(f"--seconds {seconds:g}: no answer came in them; give more")
    return {
        "verdicts_per_s": len(waits) / passed,
        "p50_ms": 1e3 * float(np.quantile(waits, 0.5)),
    }


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llm-ms", type=float, default=100, help="least time of a forward pass")
    parser.add_argument("--devices", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=20, help="of a turn")
    parser.add_argument("--turns", type=int, default=2)
    add_pair_options(parser)
    options = parser.parse_args()
    settings = pair_settings(options, llm_backend=f"engine:{options.llm_ms:g}")
    fleet, vocab = Fleet(24, 0.5, settings), vocabulary_size(ids_on_the_wire(settings)[1])
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environ = {"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}}
    ray.init(  # of its own: another on this machine is somebody else's
        "local",
        include_dashboard=False,
        logging_level="error",
        log_to_driver=False,
        runtime_env=environ,
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"port": port})
    turns = []
    with TemporaryDirectory() as folder:
        known = DeviceTokens(Path(folder) / "devices.json")
        tokens = [known.issue(f"device-{number}") for number in range(options.devices)]
        named = ("slm", "llm", "llm_device", "llm_dtype", "llm_backend")
        args = {name.replace("_", "-"): getattr(settings, name) for name in named}
        args["token-file"] = str(known.file)
        for count in [1, 2] * options.turns:
            scaled = deployment(args).options(num_replicas=count, ray_actor_options={"num_cpus": 0})
            serve.run(scaled.bind(), name="fedhlm")
            found = {"replicas": count, **asked(fleet, vocab, tokens, port, options.seconds)}
            turns.append(found)
            print({name: round(value, 2) for name, value in found.items()}, flush=True)
        serve.shutdown()
    ray.shutdown()
    one, two = (
        np.mean([turn["verdicts_per_s"] for turn in turns if turn["replicas"] == count])
        for count in (1, 2)
    )
    print(f"two replicas: {two / one:.2f} of one")
    print(write_report("replicas", {**vars(options), "turns": turns, "ratio": two / one}))


if __name__ == "__main__":
    main()
