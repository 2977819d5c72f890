"""Files of `deploy/`, and Flower's commands in the docs: every line is one of its program."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from configparser import RawConfigParser, SectionProxy
from pathlib import Path

import click
import pytest
import yaml

from fedhlm_app.cli.app import app
from fedhlm_app.cli.run import collect
from fedhlm_app.settings import SettingsError
from tests.test_docs import PAGES, blocks, parsed

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
FLOWERS = {
    "flower-superlink": "flwr.superlink.cli.flower_superlink:_parse_args_run_superlink",
    "flower-supernode": "flwr.supernode.cli.flower_supernode:_parse_args_run_supernode",
}


def check(words: list[str]) -> None:
    """Parse a command line by the program that it starts."""
    program, words = Path(words[0]).name, words[1:]
    if program in FLOWERS:
        module, _, parser = FLOWERS[program].partition(":")
        getattr(importlib.import_module(module), parser)().parse_args(words)
        return
    known = app if program == "fedhlm" else importlib.import_module("flwr.cli.app").app
    assert program in ("fedhlm", "flwr"), program
    with parsed(known, program, words) as context:
        if context.command.name == "supernode" and program == "fedhlm":
            check(["flower-supernode", *context.args])


def stages() -> dict[str, dict[str, list[str]]]:
    """Instructions of each stage of the Dockerfile: word to what stands behind it."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ").splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            own: dict[str, list[str]] = {}
            found[rest.split(" AS ")[1]] = own
        elif word.isupper():
            own.setdefault(word, []).append(rest)
    return found


def entry(target: str) -> list[str]:
    words: list[str] = json.loads(stages()[target]["ENTRYPOINT"][0])
    return words


KNOWN = dict(
    line.split("=", 1)
    for line in (DEPLOY / "systemd" / "fedhlm.env").read_text().splitlines()
    if line and not line.startswith("#")
)


def service_of(path: Path) -> SectionProxy:
    unit = RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(path)
    return unit["Service"]


def lines_of_units() -> Iterator[tuple[str, list[str]]]:
    for path in sorted(DEPLOY.glob("systemd/*.service")):
        line = re.sub(r"\$\{(\w+)\}", lambda name: KNOWN[name[1]], service_of(path)["ExecStart"])
        yield path.name, shlex.split(line)


def lines_of_compose() -> Iterator[tuple[str, list[str]]]:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    for name, service in services.items():
        yield f"compose {name}", entry(service["build"]["target"]) + service["command"]


def manifests(path: Path) -> dict:
    return {one["kind"]: one for one in yaml.safe_load_all(path.read_text())}


KUBERAY = DEPLOY / "kubernetes" / "replicas.yaml"
WORKLOADS = sorted(set(DEPLOY.glob("kubernetes/*.yaml")) - {KUBERAY})


def lines_of_kubernetes() -> Iterator[tuple[str, list[str]]]:
    for path in WORKLOADS:
        (container,) = manifests(path)["StatefulSet"]["spec"]["template"]["spec"]["containers"]
        yield path.name, entry(container["image"].removeprefix("fedhlm-")) + container["args"]


def lines_of_pages() -> Iterator[tuple[str, list[str]]]:
    for page in PAGES:
        for _, text in blocks(page, ("", "console", "sh", "bash")):
            for line in re.split(r"\n|; do | && |; done", text.replace("\\\n", " ")):
                if line.startswith(("flwr ", "flower-", "fedhlm ")):
                    words = shlex.split(line, comments=True)
                    yield page.name, words[: words.index("|")] if "|" in words else words


LINES = [*lines_of_units(), *lines_of_compose(), *lines_of_kubernetes(), *lines_of_pages()]


@pytest.mark.parametrize(
    ("where", "words"), LINES, ids=[f"{number} {where}" for number, (where, _) in enumerate(LINES)]
)
def test_a_command_line_is_one(where, words):
    check(words)


def test_there_are_lines_to_check():
    names = [where for where, _ in LINES]
    assert len([name for name in names if name.endswith(".service")]) == 5
    assert names.count("deploy.md") >= 30


def test_a_wrong_option_would_be_seen():
    for words in (["fedhlm", "serve", "supernode", "--not-flowers"], ["flower-superlink", "--x"]):
        with pytest.raises(SystemExit):
            check(words)
    with pytest.raises(click.UsageError):
        check(["flwr", "run", "--not-an-option"])


def test_images_are_not_roots_and_hold_every_package():
    found = stages()
    assert {"llm", "edge", "superlink", "supernode", "device"} <= found.keys()
    assert found["base"]["USER"] == ["10001"]
    copied = [line.split() for line in found["build"]["COPY"]]
    for *sources, _ in copied:
        assert all((DEPLOY.parent / source).exists() for source in sources)
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(packages) <= {source for source, *_ in copied}
    # KubeRay says what runs in the replicas' image.
    for target in found.keys() - {"build", "base", "installed", "build-replicas", "replicas"}:
        check(entry(target))


def test_a_builder_without_buildkit_reads_no_keys_and_builds_only_what_is_asked_for():
    ignored = set((DEPLOY.parent / ".dockerignore").read_text().splitlines())
    assert {".git", ".venv", "keys"} <= ignored
    for line in stages()["build"]["COPY"]:
        assert not ignored & set(line.split()[:-1])
    assert list(stages())[-2:] == ["build-replicas", "replicas"]


def test_the_llms_unit_is_not_given_what_only_a_device_may_have(monkeypatch):
    left_out = service_of(DEPLOY / "systemd" / "fedhlm-llm.service")["UnsetEnvironment"].split()
    given = {name: value for name, value in KNOWN.items() if name.startswith("FEDHLM_")}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match="llm-address"):
        collect({}, [])
    for name in left_out:
        monkeypatch.delenv(name)
    collect({}, [])


def test_servers_of_compose_are_asked_how_they_are_and_may_finish():
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    for name in ("llm", "edge", "superlink"):
        _, program, _, source = services[name]["healthcheck"]["test"]
        assert program == "python" and compile(source, name, "exec")
        (port,) = stages()[name]["EXPOSE"]
        assert f"https://localhost:{port}/" in source
    # uvicorn's own wait is ten seconds, and so is Docker's before it kills.
    assert all(int(one["stop_grace_period"].removesuffix("s")) > 20 for one in services.values())


def test_services_of_compose_have_their_volumes_and_keys():
    known = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for name, service in known["services"].items():
        places = [volume.split(":") for volume in service["volumes"]]
        assert {source for source, *_ in places if not source.startswith("..")} <= known[
            "volumes"
        ].keys()
        mounted = tuple(place + "/" for _, place, *_ in places)
        named = [*service["command"], *service.get("environment", {}).values()]
        assert all(file.startswith(mounted) for file in named if file.startswith("/")), name
        assert set(service.get("depends_on", [])) <= known["services"].keys()


@pytest.mark.parametrize("path", WORKLOADS, ids=lambda p: p.stem)
def test_a_manifest_fits_itself_and_the_image(path):
    service, workload = manifests(path)["Service"], manifests(path)["StatefulSet"]
    template = workload["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert service["spec"]["selector"] == labels == workload["spec"]["selector"]["matchLabels"]
    assert service["metadata"]["name"] == workload["spec"]["serviceName"]
    assert template["spec"]["securityContext"]["runAsNonRoot"]
    # Of a service fedhlm-edge Kubernetes would make FEDHLM_EDGE_PORT, which is no setting.
    assert template["spec"]["enableServiceLinks"] is False
    (container,) = template["spec"]["containers"]
    (port,) = container["ports"]
    exposed = stages()[container["image"].removeprefix("fedhlm-")]["EXPOSE"]
    assert [str(port["containerPort"])] == exposed
    volumes = {one["name"] for one in template["spec"]["volumes"]}
    volumes |= {one["metadata"]["name"] for one in workload["spec"]["volumeClaimTemplates"]}
    assert {one["name"] for one in container["volumeMounts"]} == volumes
    mounted = tuple(one["mountPath"] + "/" for one in container["volumeMounts"])
    assert all(word.startswith(mounted) for word in container["args"] if word.startswith("/"))


def test_kuberay_starts_replicas_as_serve_reads_them():
    (service,) = manifests(KUBERAY).values()
    cluster, served = (
        service["spec"]["rayClusterConfig"],
        yaml.safe_load(service["spec"]["serveConfigV2"]),
    )
    pins = (DEPLOY.parent / "constraints.txt").read_text().splitlines()
    assert f"ray=={cluster['rayVersion']}" in pins
    (workers,) = cluster["workerGroupSpecs"]
    scaled = served["applications"][0]["deployments"][0]["autoscaling_config"]
    # A pod of one core for each replica of one.
    for bound in ("min", "max"):
        assert workers[f"{bound}Replicas"] == scaled[f"{bound}_replicas"]
    for group in (cluster["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["enableServiceLinks"] is False
        mounts = {one["name"]: one["mountPath"] + "/" for one in container["volumeMounts"]}
        assert mounts.keys() == {one["name"] for one in pod["volumes"]}
        assert container["image"].removeprefix("fedhlm-") in stages()
        files = [*served["http_options"].values(), served["applications"][0]["args"]["token-file"]]
        files = [one for one in files if str(one).startswith("/")]
        assert len(files) == 3 and all(file.startswith(mounts["keys"]) for file in files)
    (port,) = container["ports"]
    assert port["name"] == "serve" == container["readinessProbe"]["httpGet"]["port"]
    assert [str(port["containerPort"])] == stages()["replicas"]["EXPOSE"]
    assert port["containerPort"] == served["http_options"]["port"]


def test_the_script_is_bash():
    subprocess.run(["bash", "-n", str(DEPLOY / "local.sh")], check=True)
