"""The LLM on Ray Serve, two replicas of it as in `deploy/ray-serve/llm.yaml`; one is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx
import pytest
import yaml

from clients.policy import ThresholdPolicy
from fedhlm_app.client.device import Device
from fedhlm_app.hosting.llm import build_service
from fedhlm_app.launch.processes import free_port
from fedhlm_app.transport.http_transport import HttpTransport
from fedhlm_app.transport.transports import DirectTransport
from servers.affinity import caller_of, ranked
from tests.e2e.streamed import SETTINGS, Struck, expected, route, unresolved

pytest.importorskip("ray.serve", reason="Ray Serve is not installed (extra `serve`)")
pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(1200)]

ROOT = Path(__file__).resolve().parents[2]
CONFIG = yaml.safe_load((ROOT / "deploy" / "ray-serve" / "llm.yaml").read_text())
PATIENCE = 300


class Replicas:
    """Two replicas behind a proxy on loopback; `scale` has another number of them."""

    def __init__(self, port: int, scale: Callable[[int], object]) -> None:
        self.scale = scale
        self.before: dict[str, str] = {}  # names before one was killed
        self.address = f"127.0.0.1:{port}"
        # Ours is the only caller, without a token.
        self.caller = caller("")

    def names(self) -> dict[str, str]:
        """Actors of the replicas, by what the router calls them."""
        from ray.util import list_named_actors

        found = [actor["name"] for actor in list_named_actors(all_namespaces=True)]
        return {name.split("#")[-1]: name for name in found if name.startswith("SERVE_REPLICA::")}

    def kill(self) -> None:
        """Kill the replica that the device asks."""
        import ray

        self.before = names = self.names()
        actor = ray.get_actor(names[ranked(self.caller, names)[0]], namespace="serve")
        ray.kill(actor, no_restart=True)

    def wait(self, count: int = 2) -> None:
        """Until so many are there, none of them one that was killed, and no other is known."""
        from ray import serve

        deadline = time.monotonic() + PATIENCE
        while True:
            deployed = serve.status().applications["fedhlm"].deployments["llm"]
            names = self.names()
            settled = deployed.replica_states == {"RUNNING": count} and len(names) == count
            if settled and names != self.before:
                return
            assert time.monotonic() < deadline, deployed
            time.sleep(0.2)


def caller(token: str) -> bytes:
    """Who sends a request from this machine with a token."""
    told = [(b"authorization", f"Bearer {token}".encode())] if token else []
    return caller_of({"type": "http", "headers": told, "client": ("127.0.0.1", 1)})


@pytest.fixture(scope="module")
def replicas():
    import ray
    from ray import serve

    from fedhlm_app.hosting.replicas import deployment

    environ = {"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}}
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        logging_level="error",
        log_to_driver=False,
        runtime_env=environ,
    )
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        # A busy machine takes more than the minute that Serve waits for its proxy.
        patch.setattr("ray.serve._private.api.HTTP_PROXY_TIMEOUT", PATIENCE)
        serve.start(http_options=CONFIG["http_options"] | {"port": port})
    (told,) = CONFIG["applications"]
    ((options,)) = told["deployments"]
    scaled = options | {"autoscaling_config": None, "num_replicas": 2}
    found = deployment(told["args"]).options(**scaled | {"ray_actor_options": {"num_cpus": 0}})
    # With one version a further number of replicas leaves those that are there as they are.
    found = found.options(version="1", _internal=True)

    def scale(count: int) -> None:
        scaled = found.options(num_replicas=count).bind()
        serve.run(scaled, name=told["name"], route_prefix=told["route_prefix"])

    scale(2)
    replicas = Replicas(port, scale)
    replicas.wait()
    yield replicas
    serve.shutdown()
    ray.shutdown()


def test_text_is_that_of_one_server(replicas):
    link = HttpTransport(replicas.address, timeout=PATIENCE)
    found = route(link)
    assert unresolved(found) == 0 == found.traffic.failures
    served = link.stats()
    # One that is slow to say how much it has to do may be passed over now and then.
    assert served["streams"]["opened"] > found.traffic.streams / 2
    link.close()


def test_a_replica_that_is_killed_in_mid_stream_costs_a_prefix_and_no_token(replicas):
    replicas.wait()
    struck = Struck(replicas.address, replicas.kill)
    found = route(struck)
    assert struck.pieces <= 0
    assert unresolved(found) == 0
    assert found.records[0].stage_counts() == expected().records[0].stage_counts()
    struck.close()


def test_one_that_is_killed_between_verdicts_neither(replicas):
    replicas.wait()
    settings = SETTINGS.model_copy(update={"escalation": "token"})

    class Killing(HttpTransport):
        asked = 0

        def exchange(self, payload: bytes) -> bytes:
            self.asked += 1
            if self.asked == 4:
                replicas.kill()
            return super().exchange(payload)

    link = Killing(replicas.address, timeout=PATIENCE)
    found, direct = (
        Device(settings, 0, transport).train_round(ThresholdPolicy(0.5), 1)
        for transport in (link, DirectTransport(build_service(settings)))
    )
    assert link.asked > 4
    assert (found.records[0].token == direct.records[0].token).all()
    assert found.records[0].stage_counts() == direct.records[0].stage_counts()
    assert found.traffic.failures == 0 and found.traffic.uplink > direct.traffic.uplink
    link.close()


def test_one_that_is_taken_away_under_a_stream_costs_no_token_either(replicas):
    if not replicas.before:  # where this test runs alone
        replicas.kill()
    replicas.wait()
    # Ray takes the newest away, which is there in the place of one that was killed.
    names = replicas.names()
    (newest,) = set(names) - set(replicas.before)
    token = next(t for t in map(str, range(100)) if ranked(caller(t), names)[0] == newest)
    scaling = threading.Thread(target=partial(replicas.scale, 1))
    struck = Struck(replicas.address, scaling.start, token=token)
    struck.timeout = PATIENCE
    found = route(struck)
    scaling.join(PATIENCE)
    replicas.wait(1)
    assert struck.pieces <= 0 and newest not in replicas.names()
    assert unresolved(found) == 0 == found.traffic.failures
    assert found.records[0].stage_counts() == expected().records[0].stage_counts()
    struck.close()


def test_who_asks_for_health_or_something_else_is_answered_as_by_one_server(replicas):
    with httpx.Client(base_url=f"http://{replicas.address}", trust_env=False) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").json() == {"status": "ready"}
        assert "fedhlm_verdicts_total" in client.get("/metrics").text
        refused = client.post("/v1/exchange", content=b"nothing of ours")
        assert refused.status_code == 400
