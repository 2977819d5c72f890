"""A federation of separate processes on loopback: SuperLink, SuperNodes and an edge server.

The LLM is served by the test. Flower's own SuperNodes are in `test_serve_device`, which is slow.
"""

from __future__ import annotations

import pytest

from fedhlm_app.hosting.llm import build_service
from fedhlm_app.results.runs import RunFolder, latest_run
from fedhlm_app.settings import Settings
from tests.certificates import Authority
from tests.e2e.deployed import deployment, run_on, start_edge, start_flower
from tests.fedhlm_app.in_process import Runner
from tests.golden.recording import one_thread
from tests.served import serving

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

CLIENTS = 2
SMALL = {
    "clients": CLIENTS,
    "clusters": 1,
    "rounds": 2,
    "tokens-per-round": 12,
    "tokens-per-prompt": 6,
    "evaluate-every": 0,
    "min-clients": CLIENTS,
    "seed": 3,
    # The runs that are made here in one process ask for single tokens, too.
    "escalation": "token",
    # Most tokens are asked about, so that the link has something to carry.
    "initial-threshold": 0.3,
    # Peers answer in the edge server's process, and eq. 7 runs there.
    "peer-mode": "context",
    "opportunistic": False,
    "context-gate": 0.9,
    "reuse-gate": 0.9,
}


def learned(folder: RunFolder | None) -> dict:
    """What must be the same wherever a run takes place."""
    assert folder is not None
    summary = folder.summary()
    assert summary is not None
    kept = (
        "tokens",
        "resolution",
        "hierarchy",
        "threshold",
        "trr",
        "llm_agreement",
        "certificate",
        "rounds",
    )
    return {key: summary[key] for key in kept} | {
        "rounds": [line["threshold"] for line in folder.metrics()]
    }


def test_separate_processes_learn_the_simulations_thresholds(tmp_path, monkeypatch):
    with one_thread():
        _, simulated, _ = Runner(monkeypatch).run(tmp_path / "simulation", **SMALL)
    authority, token = Authority(tmp_path / "authority"), "a-token-of-a-test-0123456789"
    certificate, key = authority.issue("127.0.0.1")
    (tmp_path / "token").write_text(token)
    secured = {"token": token, "certificate": certificate, "key": key}
    service = build_service(Settings.from_sources(SMALL, environ={}))
    with one_thread(), serving(service, **secured) as (llm, served), deployment() as deployed:
        # The devices have the token in their environment, the edge server in a file.
        deployed.environ["FEDHLM_LLM_TOKEN"] = token
        nodes = [f"partition-id={i} num-partitions={CLIENTS}" for i in range(CLIENTS)]
        start_flower(deployed, nodes)
        edge = start_edge(
            deployed, "--upstream", f"https://127.0.0.1:{llm}", "--upstream-ca",
            str(authority.file), "--tls-cert", certificate, "--tls-key", key,
            "--token-file", str(tmp_path / "token"),
        )()  # fmt: skip
        # The edge server's is the one address that devices know.
        known = {
            "llm-address": edge, "edge-addresses": edge, "llm-ca-file": str(authority.file),
        }  # fmt: skip
        settings = Settings.from_sources(
            {**SMALL, "run-dir": str(tmp_path / "deployed"), **known}, environ={}
        )
        status = run_on(deployed, settings)
        assert status == "finished:completed", deployed.logs("superlink", "supernode-0", "run")
        written = [*deployed.folder.rglob("*.log"), *(tmp_path / "deployed").rglob("*")]
        assert all(token.encode() not in path.read_bytes() for path in written if path.is_file())
    found = learned(latest_run(tmp_path / "deployed"))
    assert found == learned(simulated)
    assert found["tokens"] == 2 * CLIENTS * 12
    assert found["resolution"]["unresolved"] == 0
    asked = found["resolution"]["llm_accepted"] + found["resolution"]["llm_resampled"]
    assert asked > 0
    assert {status for status in served.counts if status.isdecimal()} == {"200"}
    counted = latest_run(tmp_path / "deployed").summary()["bytes"]
    # Measuring bytes are the run's own and not the method's: the server saw both.
    assert served.counts["bytes-uplink"] >= counted["uplink"] > 0
