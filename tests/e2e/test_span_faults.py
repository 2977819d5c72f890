"""A served LLM and a device over loopback; in the middle of a stream one of them is killed."""

from __future__ import annotations

import subprocess
import sys

import httpx
import numpy as np
import pytest

from fedhlm_app.launch.processes import free_port
from fedhlm_app.transport.http_transport import HttpTransport
from hlm.wire.stream import Opening, encode_opening
from tests.asking import request_of
from tests.e2e.deployed import PATIENCE, Deployment, answers, deployment
from tests.e2e.streamed import Struck, route, unresolved
from tests.wire_rows import Row

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(1800)]

READER = """
import sys, time
from http.client import HTTPConnection
connection = HTTPConnection("127.0.0.1", int(sys.argv[1]))
connection.request("POST", "/v1/stream", bytes.fromhex(sys.argv[2]))
connection.getresponse().read1(1)
print("reading", flush=True)
time.sleep(3600)
"""
"""A device that begins to read a stream, and says so."""


def serve(deployed: Deployment, port: int, pace: int = 0) -> None:
    """Start the LLM server at a port; a pass takes at least so many milliseconds."""
    deployed.start(
        "llm", sys.executable, "-m", "fedhlm_app", "serve", "llm", "--port", str(port),
        "--pace-ms", str(pace),
    )  # fmt: skip
    deployed.wait_for(lambda: answers(f"http://127.0.0.1:{port}/health"), "llm")


def streams(port: int) -> dict[str, int]:
    url = f"http://127.0.0.1:{port}/v1/stats"
    return httpx.get(url, timeout=PATIENCE, trust_env=False).json()["streams"]


def kill_a_reader(deployed: Deployment, port: int) -> None:
    """A device's process is killed while the server writes for it."""
    row = Row(0, 0, np.array([1, 300, 17]), 7)
    request = request_of("greedy", [row], vocab=4096, client=9)
    opening = encode_opening(Opening(request, 1, 120, 120)).hex()
    words = [sys.executable, "-c", READER, str(port), opening]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None and reader.stdout.readline() == b"reading\n"
        reader.kill()
    deployed.wait_for(lambda: not streams(port)["open"], "llm")


def test_what_a_kill_in_mid_stream_leaves():
    with deployment() as deployed:
        port = free_port()
        # However late a reader is, no stream is over before the kill.
        serve(deployed, port, 300)
        kill_a_reader(deployed, port)
        transport = Struck(f"127.0.0.1:{port}", deployed.processes["llm"].kill)
        struck = route(transport)
        assert unresolved(struck) > 0
        stages = struck.records[0].stage_counts()
        assert stages["llm_accepted"] + stages["llm_resampled"] > 0
        # Another process at the same address knows no text: the device sends its prefixes again.
        deployed.processes["llm"].wait()
        serve(deployed, port)
        again = HttpTransport(f"127.0.0.1:{port}", timeout=PATIENCE)
        mended = route(again)
        assert unresolved(mended) == 0 == mended.traffic.failures
        deployed.wait_for(lambda: not streams(port)["open"], "llm")
