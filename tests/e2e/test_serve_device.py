"""The production loop with real processes: a device serves, a federation learns from its texts."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from fedhlm_app.results.runs import latest_run
from fedhlm_app.settings import Settings
from tests.e2e.deployed import deployment, run_on, start_device, start_flower, start_llm

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(1800)]

SMALL = {
    "clients": 1,
    "clusters": 1,
    "rounds": 2,
    "tokens-per-round": 1000,
    "evaluate-every": 0,
    "initial-threshold": 0.3,
    "learning": "balanced",
}
PROMPTS = ("Shares of the airline", "The minister said", "A late goal", "Researchers found")


def test_a_device_serves_with_what_the_federation_learned_from_its_texts(tmp_path):
    store = tmp_path / "store"
    with deployment() as deployed, httpx.Client(trust_env=False, timeout=300) as http:
        llm_address = start_llm(deployed)()
        address = start_device(
            deployed, llm_address, "--store", str(store), "--set", "initial-threshold=0.3",
            "--set", "learning=balanced",
        )  # fmt: skip
        # Flower's own takes seconds for a message, in which the texts for the second round come.
        node = f'partition-id=0 num-partitions=1 feedback-store="{store}"'
        start_flower(deployed, [node], plain=[0])
        device = f"http://{address()}/v1"
        answers = []

        def ask() -> dict:
            prompt = f"{PROMPTS[len(answers) % 4]} {len(answers)}"
            reply = http.post(f"{device}/completions", json={"prompt": prompt, "max_tokens": 8})
            assert reply.status_code == 200, reply.text
            answers.append(reply.json()["fedhlm"])
            return answers[-1]

        assert all(ask()["threshold"] == 0.3 for _ in range(8))
        settings = Settings.from_sources(
            {**SMALL, "run-dir": str(tmp_path / "runs"), "llm-address": llm_address}, environ={}
        )
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(run_on, deployed, settings)
            # The first round's message has come: texts for the second.
            deployed.wait_for(lambda: (store / "policy.json").exists() or running.done(), "device")
            assert not running.done(), deployed.logs("superlink", "supernode-0", "run")
            for _ in range(4):
                ask()
            status = running.result()
        assert status == "finished:completed", deployed.logs("superlink", "supernode-0", "run")
        assert deployed.processes["device"].poll() is None
        last = ask()
        stats = http.get(f"{device}/stats").json()
        raw = b"".join(path.read_bytes() for path in store.iterdir())
    first, second = latest_run(tmp_path / "runs").metrics()
    learned = first["threshold"]["global"]
    assert learned != 0.3 and second["threshold"]["global"] != learned
    # The serving process has taken up what round 2 was sent, and says so.
    assert (last["threshold"], last["round"]) == (learned, 2)
    assert stats["policy"] == {"kind": "threshold", "threshold": learned, "round": 2, "problem": ""}
    # Every text was learned from once, in its order.
    consumed = json.loads((store / "policy.json").read_text())["consumed"]
    assert 8 < consumed <= len(answers)
    tokens = [len(answer["tokens"]) for answer in answers]
    assert first["tokens"] >= sum(tokens[:8])
    assert first["tokens"] + second["tokens"] == sum(tokens[:consumed])
    assert second["weights"]["0"] > 0
    assert stats["store"]["tokens"] == sum(tokens)
    assert b"airline" not in raw and b"minister" not in raw
