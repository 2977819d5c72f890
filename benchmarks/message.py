"""What a message to a SuperNode takes on the clock beyond its work, as the ServerApp sees it.

    python -m benchmarks.message [--messages 30] [--plain]

One `fedhlm serve supernode` (`--plain`: Flower's own) at a real SuperLink with its database answers
one message after another; its ClientApp (`benchmarks._superlink_app`) does nothing, so all of the
time is Flower's and ours, and there is no model pair. The first message starts the ClientApp's
process, and is told apart.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks._report import write_report
from benchmarks._superlink_app import SECONDS
from benchmarks.superlink import PATIENCE, superlink
from fedhlm_app.launch.app_folder import Components, write_app
from fedhlm_app.launch.processes import free_port
from fedhlm_app.launch.superlink import program
from fedhlm_app.settings import Settings


def measure(messages: int, plain: bool) -> dict[str, Any]:
    """Seconds of a message: the first one, median and largest of the others."""
    with TemporaryDirectory() as name, superlink(Path(name)) as (address, _, environ):
        folder = Path(name)
        words = [sys.executable, "-m", "fedhlm_app", "serve", "supernode"]
        if plain:
            words = [program("flower-supernode"), f"--port={free_port()}"]
        words += ["--insecure", f"--superlink={address}", "--node-config=partition-id=0"]
        with (folder / "supernode.log").open("wb") as log:
            node = subprocess.Popen(words, cwd=folder, env=environ, stdout=log, stderr=log)
        place = "benchmarks._superlink_app"
        settings = Settings.from_sources({"clients": 1, "clusters": 1, "rounds": messages}, {})
        app = write_app(
            folder / "fedhlm", settings, Components(f"{place}:server", f"{place}:client")
        )
        try:
            done = subprocess.run(
                [program("flwr"), "run", str(app), "lo", "--stream"],
                env=environ, cwd=folder, timeout=PATIENCE, capture_output=True, text=True,
            )  # fmt: skip
        finally:
            node.terminate()
            node.wait()
        if not (folder / SECONDS).exists():
            raise RuntimeError(done.stdout[-2000:] + (folder / "supernode.log").read_text()[-2000:])
        first, *others = json.loads((folder / SECONDS).read_text())
    return {"first_s": first, "median_s": np.median(others), "largest_s": max(others)}


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=30, help="at least 2")
    parser.add_argument("--plain", action="store_true", help="Flower's own SuperNode")
    options = parser.parse_args()
    found = measure(max(2, options.messages), options.plain)
    print({name: round(float(value), 2) for name, value in found.items()})
    print(write_report("message", {**vars(options), **found}))


if __name__ == "__main__":
    main()
