"""An existing Ray cluster: how it is named, and what a run asks of it."""

from __future__ import annotations

import math
import socket

import pytest
import ray

from fedhlm_app.hosting import llm
from fedhlm_app.settings import Settings, SettingsError
from fedhlm_app.settings.ray_cluster import client_resources, joined, llm_gpus, reach
from servers.actors import LanguageModelActor, start_actor


def settings(**words: object) -> Settings:
    given = {key.replace("_", "-"): value for key, value in words.items()}
    return Settings.from_sources({"clients": 8, "clusters": 1, **given}, {})


def test_rays_own_variable_names_the_cluster() -> None:
    assert joined({"RAY_ADDRESS": " 10.0.0.5:6379 "}) == "10.0.0.5:6379"
    assert joined({}) == joined({"RAY_ADDRESS": ""}) == joined({"RAY_ADDRESS": "local"}) == ""


@pytest.mark.parametrize("address", ["ray://h:10001", "http://h:8265", "h", ":1", "h:x", "h:99999"])
def test_an_address_that_is_none_is_refused_by_name(address: str) -> None:
    with pytest.raises(SettingsError, match=f"RAY_ADDRESS = '{address}': allowed are host:port"):
        reach(address)


def test_an_address_where_nothing_listens_is_refused_and_one_where_something_does_is_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        reach(address)
    with pytest.raises(SettingsError, match=f"RAY_ADDRESS = '{address}': no Ray cluster"):
        reach(address)
    reach("auto")


@pytest.mark.parametrize("device", ["cpu", "cuda", "auto"])
@pytest.mark.parametrize("llm_device", ["cpu", "cuda", "auto"])
@pytest.mark.parametrize("nodes", [[(2, 1)], [(16, 4)], [(7, 1), (32, 3), (4, 0)], [(64, 8)]])
@pytest.mark.parametrize("workers", [0, 3])
def test_client_processes_and_the_llm_fit_into_the_cluster_together(
    device: str, llm_device: str, nodes: list[tuple[float, float]], workers: int
) -> None:
    own = settings(device=device, llm_device=llm_device, workers=workers, clients=20)
    cpus, share = client_resources(own, nodes)
    llm_share = llm_gpus(own, sum(gpus for _, gpus in nodes))
    assert (share > 0, llm_share > 0) == (device != "cpu", llm_device != "cpu")
    started = 0
    for cpu, gpus in nodes:
        # As many as Flower starts on a node (`pool_size_from_resources`).
        here = min(int(cpu / cpus), int(gpus / share)) if share else int(cpu / cpus)
        if share and gpus:
            # Each GPU holds its part of them beside the LLM, wherever that is.
            assert math.ceil(here / gpus) * round(share * 10_000) + llm_share * 10_000 <= 10_000
        started += here
    assert started >= 1
    if workers and share == 0 and len(nodes) == 1:
        assert started >= min(workers, int(nodes[0][0]))


def test_what_the_cluster_does_not_have_is_refused_by_name() -> None:
    for words in ({"device": "cuda"}, {"llm_device": "cuda"}, {"llm_device": "cuda:1"}):
        (setting,) = words
        with pytest.raises(SettingsError, match=f"'{setting.replace('_', '-')}' = 'cuda"):
            client_resources(settings(**words), [(4, 0)])
    with pytest.raises(SettingsError, match="no CPU"):
        client_resources(settings(), [(0, 1)])
    assert client_resources(settings(device="auto", llm_device="auto"), [(4, 0)]) == (1, 0.0)


@pytest.mark.parametrize(
    ("words", "gpus", "asked"),
    [
        ({"llm_device": "cuda"}, 2, 1.0),
        ({"llm_device": "cuda", "device": "cuda"}, 1, 0.5),
        ({"llm_device": "auto"}, 1, 1.0),
        ({"llm_device": "auto"}, 0, 0.0),
        ({"llm_device": "cuda:1"}, 2, 0.0),
        ({"llm_device": "cpu", "device": "cuda"}, 1, 0.0),
    ],
)
def test_the_llms_actor_asks_ray_for_its_gpu(
    monkeypatch: pytest.MonkeyPatch, words: dict[str, str], gpus: float, asked: float
) -> None:
    handed: dict[str, object] = {}

    class Kind:
        def options(self, **options: object) -> Kind:
            handed.update(options)
            return self

        def remote(self, *_: object) -> None: ...

    def remote(**options: object):
        handed.update(options)
        return lambda kind: Kind()

    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": float(gpus)})
    llm.LanguageModelHost(settings(**words), "llm-1").ensure()
    assert (handed["num_cpus"], handed["num_gpus"], handed["name"]) == (0, asked, "llm-1")
    start_actor(LanguageModelActor, "edge-1-0", "fedhlm")
    assert handed["num_gpus"] == 0
    # An actor of a run that was killed must not stay on a cluster that goes on.
    assert "lifetime" not in handed
