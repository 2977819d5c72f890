"""The Serve application of the config files, and its choice of replicas; nothing is started."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from fedhlm_app.settings import SettingsError
from servers.affinity import caller_of, ranked

pytest.importorskip("ray.serve", reason="Ray Serve is not installed (extra `serve`)")

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"


def configs():
    yield yaml.safe_load((DEPLOY / "ray-serve" / "llm.yaml").read_text())
    kuberay = yaml.safe_load((DEPLOY / "kubernetes" / "replicas.yaml").read_text())
    yield yaml.safe_load(kuberay["spec"]["serveConfigV2"])


def test_serve_reads_the_config_files_and_they_name_the_deployment(tmp_path):
    from ray.serve.schema import ServeDeploySchema

    from fedhlm_app.hosting.replicas import deployment

    for number, config in enumerate(configs()):
        found = ServeDeploySchema.model_validate(config)
        assert found.http_options.port == 8471
        (told,) = found.applications
        assert told.import_path == "fedhlm_app.hosting.replicas:build" and told.route_prefix == "/"
        args = told.args
        if number:
            (tmp_path / "devices.json").write_text("{}")
            args = args | {"token-file": str(tmp_path / "devices.json")}
        made = deployment(args)
        (scaled,) = told.deployments
        assert scaled.name == made.name == "llm"
        assert scaled.autoscaling_config["min_replicas"] == 2
        # Those that wait at a replica are counted before it refuses any.
        assert scaled.autoscaling_config["target_ongoing_requests"] < made.max_ongoing_requests


def test_settings_are_checked_before_a_replica_starts(monkeypatch):
    from fedhlm_app.hosting.replicas import build

    monkeypatch.delenv("FEDHLM_LLM_TOKEN", raising=False)
    for words in ({}, {"insecure": "false"}):
        with pytest.raises(SettingsError, match=r"token-file: .* or insecure: true"):
            build({"llm": "builtin"} | words)
    with pytest.raises(SettingsError, match="threads = many: must be"):
        build({"threads": "many", "insecure": "true"})
    with pytest.raises(SettingsError, match="llm-contxt"):
        build({"llm-contxt": 64, "insecure": True})
    with pytest.raises(ValueError, match="token-file"):
        build({"token-file": "/nowhere"})


def test_a_device_is_sent_to_the_replicas_in_its_own_order():
    from fedhlm_app.hosting.replicas import DeviceRouter

    router = DeviceRouter.__new__(DeviceRouter)
    router._pending_requests_to_fulfill = []
    replicas = [
        SimpleNamespace(replica_id=SimpleNamespace(unique_id=name)) for name in ("one", "two", "3")
    ]

    def asked(address: str | None):
        scope = {"type": "http", "headers": [], "client": (address, 1)}
        request = SimpleNamespace(
            args=[pickle.dumps(SimpleNamespace(asgi_scope=scope))],
            metadata=SimpleNamespace(is_http_request=address is not None),
            routing_context=SimpleNamespace(should_backoff=False),
            future=SimpleNamespace(done=lambda: False),
        )
        ranks = asyncio.run(router.choose_replicas(replicas, request))
        return [[one.replica_id.unique_id for one in rank] for rank in ranks], request, scope

    for address in ("10.0.0.1", "10.0.0.2", "10.0.0.3"):
        ranks, request, scope = asked(address)
        assert ranks == [[name] for name in ranked(caller_of(scope), ["one", "two", "3"])]
        # Or the router would ask them all again without a pause.
        assert request.routing_context.should_backoff
        # One that lost its turn is found again.
        router._pending_requests_to_fulfill = [request]
        found = asyncio.run(router.choose_replicas(replicas))
        assert [[one.replica_id.unique_id for one in rank] for rank in found] == ranks
        router._pending_requests_to_fulfill = []
    assert asked(None)[0] == [["one", "two", "3"]]
    assert asyncio.run(router.choose_replicas(replicas)) == [replicas]
