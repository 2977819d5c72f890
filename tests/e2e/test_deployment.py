"""A federation of separate processes: SuperLink, SuperNodes, edge server and LLM on loopback."""

from __future__ import annotations

import ssl

import httpx
import pytest

from fedhlm_app.results.runs import RunFolder, latest_run
from fedhlm_app.settings import Settings
from tests.certificates import Authority
from tests.e2e.deployed import deployment, run_on, start_edge, start_flower, start_llm
from tests.fedhlm_app.in_process import Runner
from tests.golden.recording import one_thread

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

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
    with deployment() as deployed:
        # The devices have the token in their environment, the server in a file.
        llm_address = start_llm(
            deployed, "--tls-cert", certificate, "--tls-key", key,
            "--token-file", str(tmp_path / "token"),
        )  # fmt: skip
        deployed.environ["FEDHLM_LLM_TOKEN"] = token
        nodes = [f"partition-id={i} num-partitions={CLIENTS}" for i in range(CLIENTS)]
        start_flower(deployed, nodes, plain=[1])
        address = llm_address()
        assert address.startswith("https://127.0.0.1:")
        edge = start_edge(
            deployed, "--upstream", address, "--upstream-ca", str(authority.file),
            "--tls-cert", certificate, "--tls-key", key,
            "--token-file", str(tmp_path / "token"),
        )()  # fmt: skip
        # The edge server's is the one address that devices know.
        served = {
            "llm-address": edge, "edge-addresses": edge, "llm-ca-file": str(authority.file),
        }  # fmt: skip
        settings = Settings.from_sources(
            {**SMALL, "run-dir": str(tmp_path / "deployed"), **served}, environ={}
        )
        status = run_on(deployed, settings)
        assert status == "finished:completed", deployed.logs("superlink", "supernode-0", "run")
        stats = httpx.get(
            f"{address}/v1/stats",
            trust_env=False,
            verify=ssl.create_default_context(cafile=str(authority.file)),
            headers={"authorization": f"Bearer {token}"},
        ).json()
        written = [*deployed.folder.rglob("*.log"), *(tmp_path / "deployed").rglob("*")]
        assert all(token.encode() not in path.read_bytes() for path in written if path.is_file())
    found = learned(latest_run(tmp_path / "deployed"))
    assert found == learned(simulated)
    assert found["tokens"] == 2 * CLIENTS * 12
    assert found["resolution"]["unresolved"] == 0
    asked = found["resolution"]["llm_accepted"] + found["resolution"]["llm_resampled"]
    assert asked > 0
    assert stats["answers"].keys() == {"200"}
    counted = latest_run(tmp_path / "deployed").summary()["bytes"]
    # Measuring bytes are the run's own and not the method's: the server saw both.
    assert stats["bytes"]["uplink"] >= counted["uplink"] > 0
