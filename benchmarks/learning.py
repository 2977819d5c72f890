"""One round of certified sums against rounds of gradients: ``python -m benchmarks.learning``.

Twenty clients on the built-in texts, in one process without Flower's network: the same
clients, server and messages as in a run. Risk is measured on held-out prompts at the end, the
share of tokens kept and wrong. The federation link is counted as Flower serialises the content of
train messages both ways; "of which the rule's own" are policies and sums, without the counts by
which every run is reported. In `score` and `classify` one round of sums gives a threshold with its
guarantee, so the rules of sums are measured after one round as well.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.supercore.task_identity import TaskIdentity

from benchmarks._pair import add_pair_options, pair_settings
from benchmarks._report import OUT, write_report
from fedhlm_app import client_app
from fedhlm_app.client import rounds as client_rounds
from fedhlm_app.client.device import Device
from fedhlm_app.hosting.llm import build_service
from fedhlm_app.learning.rules import RULES
from fedhlm_app.learning.rules.sums import SumsRule
from fedhlm_app.results.runs import RunFolder
from fedhlm_app.server.preflight import check
from fedhlm_app.server.rounds import Federation
from fedhlm_app.settings import Settings
from fedhlm_app.transport.transports import DirectTransport
from servers.llm import LanguageModelService

RULES_THAT_LEARN = [name for name, rule in RULES.items() if rule.learns]
SUMS = [name for name in RULES_THAT_LEARN if issubclass(RULES[name], SumsRule)]
SUM_METRICS = ("risk-curve", "wealth", "line-sums")
ONE_ROUND = ", one round"


class Grid:
    """All clients in this process; counts the bytes of messages both ways."""

    def __init__(self, settings: Settings) -> None:
        self.contexts = {
            1000 + client: Context(
                run_id=1,
                node_id=1000 + client,
                node_config={"partition-id": client, "num-partitions": settings.clients},
                state=RecordDict(),
                run_config=settings.to_run_config(),
            )
            for client in range(settings.clients)
        }
        self.bytes: dict[int, int] = {}
        self.own_bytes: dict[int, int] = {}

    def get_node_ids(self) -> list[int]:
        """All of them."""
        return list(self.contexts)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Call each client in turn."""
        replies = []
        for message in messages:
            reply = client_app.app(message, self.contexts[message.metadata.dst_node_id])
            if message.metadata.message_type == "train":
                number = int(message.content.config_records["config"]["round"])  # type: ignore[arg-type]
                for content in (message.content, reply.content):
                    self.bytes[number] = self.bytes.get(number, 0) + _size(content)
                    own = self.own_bytes.get(number, 0) + _size(_rules_own(content))
                    self.own_bytes[number] = own
            replies.append(reply)
        return replies


def _size(content: RecordDict) -> int:
    """Bytes of a message's content as it travels."""
    return int(recorddict_to_proto(content).ByteSize())


def _rules_own(content: RecordDict) -> RecordDict:
    """Policies and sums alone."""
    found = RecordDict(dict(content.array_records))
    for name, record in content.metric_records.items():
        sums = {key: value for key, value in record.items() if key in SUM_METRICS}
        if sums:
            found[name] = MetricRecord(sums)
    return found


def one(settings: Settings, service: LanguageModelService) -> dict[str, Any]:
    """Figures of one run."""
    devices: dict[int, Device] = {}

    def device(settings: Settings, client: int, run: int) -> Device:
        if client not in devices:
            devices[client] = Device(settings, client, DirectTransport(service))
        return devices[client]

    grid, begin = Grid(settings), time.perf_counter()
    with mock.patch.object(client_rounds, "_device", device):
        run_folder = RunFolder.create(settings, {})
        Federation(settings, check(settings), run_folder, None).run(grid)  # type: ignore[arg-type]
    summary, lines = run_folder.summary(), run_folder.metrics()
    assert summary is not None
    evaluation, last = summary["evaluation"], lines[-5:]
    thresholds = [line["threshold"]["global"] for line in lines]
    end = thresholds[-1]
    return {
        "threshold": thresholds,
        "rounds_to_settle": 1 + max((i for i, t in enumerate(thresholds) if t != end), default=-1),
        "held_out": {
            "risk": evaluation["certificate"],
            "trr": evaluation["trr"],
            "llm_agreement": evaluation["llm_agreement"],
            "worst_client": summary["coverage"]["worst"],
            "clients_above_budget": summary["coverage"]["share_above"],
        },
        "last_five_rounds": {
            "risk": float(np.mean([line["certificate"] for line in last])),
            "trr": float(np.mean([line["trr"] for line in last])),
        },
        "whole_run": {"risk": summary["certificate"], "trr": summary["trr"]},
        "rounds": settings.rounds,
        "federation_bytes_per_client": sum(grid.bytes.values()) / settings.clients,
        "rules_own_bytes_per_client": sum(grid.own_bytes.values()) / settings.clients,
        "llm_link_bytes_per_token": (summary["bytes"]["uplink"] + summary["bytes"]["downlink"])
        / summary["tokens"],
        "tokens_read_for_calibration": summary["read"],
        "seconds": time.perf_counter() - begin,
    }


def _before(shape: dict[str, Any]) -> dict[str, Any]:
    """Figures of earlier calls of the same shape, to be added to."""
    path = OUT / "learning.json"
    if path.exists():
        figures: dict[str, Any] = json.loads(path.read_text())["figures"]
        if all(figures.get(key) == value for key, value in shape.items()):
            return figures
    return dict(shape)


def cases(
    workloads: Iterable[str], rules: Iterable[str], rounds: int
) -> Iterator[tuple[str, str, int]]:
    """Workload, rule and rounds of each run; one round is enough where texts are given."""
    for workload, rule in itertools.product(workloads, rules):
        if workload != "generate" and rule in SUMS and rounds > 1:
            yield workload, rule, 1
        yield workload, rule, rounds


def main() -> None:
    """Write ``benchmarks/out/learning.json`` and print a line for each rule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--budget", type=float, default=0.05)
    parser.add_argument("--workloads", nargs="+", default=["generate", "score"])
    parser.add_argument("--rules", nargs="+", default=RULES_THAT_LEARN)
    parser.add_argument("--evaluate-prompts", type=int, default=4, help="per client, held out")
    parser.add_argument("--dataset", default="builtin", help="builtin, or a file of texts")
    add_pair_options(parser)
    arguments = parser.parse_args()
    # Flower's Message wants to know who writes it.
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    shape = {
        "clients": arguments.clients,
        "rounds": arguments.rounds,
        "budget": arguments.budget,
        "dataset": Path(arguments.dataset).name,
        **{name: getattr(arguments, name) for name in ("slm", "llm", "device", "dtype")},
    }
    service = build_service(pair_settings(arguments))
    with tempfile.TemporaryDirectory() as folder:
        for workload, rule, rounds in cases(arguments.workloads, arguments.rules, arguments.rounds):
            settings = pair_settings(
                arguments,
                learning=rule,
                run_dir=folder,
                workload=workload,
                clients=arguments.clients,
                rounds=rounds,
                calibration_rounds=1 if rounds == 1 else 5,
                fidelity_budget=arguments.budget,
                evaluate_every=rounds,
                evaluate_prompts=arguments.evaluate_prompts,
                dataset=arguments.dataset,
                checkpoint=False,
            )
            found = one(settings, service)
            name = rule if rounds == arguments.rounds else rule + ONE_ROUND
            # Read again each time: rules may be measured by several calls side by side.
            figures = _before(shape)
            figures.setdefault(workload, {})[name] = found
            write_report("learning", figures)
            print(workload, name, {k: v for k, v in found.items() if k != "threshold"})
            print("   ", [round(t, 3) for t in found["threshold"]], flush=True)
    print(OUT / "learning.json")


if __name__ == "__main__":
    main()
