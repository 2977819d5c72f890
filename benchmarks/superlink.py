"""What nodes and messages cost Flower's SuperLink, which is a real one with its database.

    python -m benchmarks.superlink [--nodes 1000] [--messages 1000]

Nodes are no processes: this one speaks for all of them over Flower's own HTTP client, one question
after another, as `flower-supernode` would: it registers them, lets each look for a message where
there is none, and then answers the messages of a ServerApp (`benchmarks._superlink_app`), one for
each of so many nodes. Told are the processor time of the SuperLink (with the ServerApp's part) and
the growth of its database; the rates are those of one core that does nothing else. It has no model
pair: nodes answer with what came.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import psutil
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from benchmarks._report import write_report
from fedhlm_app.launch.app_folder import Components, code_root, write_app
from fedhlm_app.launch.processes import free_port
from fedhlm_app.launch.superlink import program
from fedhlm_app.settings import Settings

BEAT, PATIENCE = 1800.0, 900.0
"""Seconds between two signs of life, which nobody gives here; longest wait."""


class Nodes:
    """Many nodes behind one client.

    Parameters
    ----------
    address : str
        Of the SuperLink.
    """

    def __init__(self, address: str) -> None:
        version = RuntimeVersionHttpInterceptor(component_name="SuperNode")
        self.client = FleetHttpClient.from_server_address(
            address, True, None, interceptors=[version, self]
        )
        self.nodes: list[Node] = []
        self._signed: dict[int, NodeAuthHttpInterceptor] = {}
        self._speaks: NodeAuthHttpInterceptor

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Sign a question as the node that asks it does."""
        return self._speaks.intercept(context, call_next)

    def register(self) -> None:
        """Add a node."""
        private, public = generate_key_pairs()
        self._speaks, key = NodeAuthHttpInterceptor(private, public), public_key_to_bytes(public)
        self.client.RegisterNode(RegisterNodeFleetRequest(public_key=key))
        activate = ActivateNodeRequest(public_key=key, heartbeat_interval=BEAT)
        node = Node(node_id=self.client.ActivateNode(activate).node_id)
        self.nodes.append(node)
        self._signed[node.node_id] = self._speaks

    def beat(self, node: Node) -> None:
        """Give a sign of life."""
        self._speaks = self._signed[node.node_id]
        beat = SendNodeHeartbeatRequest(node=node, heartbeat_interval=BEAT)
        self.client.SendNodeHeartbeat(beat)

    def answer(self, node: Node) -> bool:
        """Look for a message and answer it; whether there was one."""
        self._speaks = self._signed[node.node_id]
        pulled = self.client.PullMessages(PullMessagesRequest(node=node))
        if not pulled.messages_list:
            return False
        message, run = pulled.messages_list[0], pulled.messages_list[0].metadata.run_id
        for part in iterate_object_tree(pulled.message_object_trees[0]):
            pull = PullObjectRequest(node=node, run_id=run, object_id=part.object_id)
            while not self.client.PullObject(pull).object_available:
                time.sleep(0.05)
        whole = message.metadata.message_id
        self.client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=node, run_id=run, message_object_id=whole)
        )
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run, node.node_id
        content = RecordDict(
            {"arrays": ArrayRecord([np.zeros(8)]), "metrics": MetricRecord({"num-examples": 1})}
        )
        reply = Message(content, reply_to=message_from_proto(message))
        reply.metadata.__dict__["_message_id"] = reply.object_id
        objects = get_all_nested_objects(reply)
        pushed = self.client.PushMessages(
            PushMessagesRequest(
                node=node,
                messages_list=[message_to_proto(remove_content_from_message(reply))],
                message_object_trees=[get_object_tree(reply)],
                clientapp_runtime_list=[0.1],
            )
        )
        for name in pushed.objects_to_push:
            self.client.PushObject(
                PushObjectRequest(
                    node=node, run_id=run, object_id=name, session_id=pushed.session_id,
                    object_content=objects[name].deflate(),
                )
            )  # fmt: skip
        return True


@contextmanager
def superlink(folder: Path) -> Iterator[tuple[str, psutil.Process, dict[str, str]]]:
    """A SuperLink with a database; its address, process, and the environment of `flwr`."""
    environ = {
        **os.environ, "FLWR_HOME": str(folder), "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1", "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(code_root()),
        # Flower starts its other programs by name.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }  # fmt: skip
    address = f"127.0.0.1:{free_port()}"
    (folder / "config.toml").write_text(
        f'[superlink]\ndefault = "lo"\n[superlink.lo]\naddress = "{address}"\ninsecure = true\n'
    )
    words = ["--insecure", "--host=127.0.0.1", f"--port={address.partition(':')[2]}"]
    words += ["--database=superlink.db", "--disable-runtime-dependency-installation"]
    with (folder / "superlink.log").open("wb") as log:
        process = subprocess.Popen(
            [program("flower-superlink"), *words], cwd=folder, env=environ, stdout=log, stderr=log
        )
    own = psutil.Process(process.pid)
    try:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            try:
                if httpx.get(f"http://{address}/health", trust_env=False).is_success:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        yield address, own, environ
    finally:
        for child in own.children(recursive=True):
            child.kill()
        process.kill()
        process.wait()


def measure(nodes: int, messages: int) -> dict[str, Any]:
    """Register nodes, let them look for messages, answer some."""
    with TemporaryDirectory() as name, superlink(Path(name)) as (address, own, environ):
        folder, many = Path(name), Nodes(address)
        found: dict[str, Any] = {}

        def size() -> int:
            return sum(file.stat().st_size for file in folder.glob("superlink.db*"))

        def timed(what: str, count: int, work: Callable[[], object]) -> None:
            """Processor ms of the SuperLink and bytes of its database, each of so many."""
            before, bytes_before, begun = own.cpu_times(), size(), time.monotonic()
            work()
            after = own.cpu_times()
            spent = after.user + after.system - before.user - before.system
            found[what] = {
                "ms": 1e3 * spent / count,
                "wall_ms": 1e3 * (time.monotonic() - begun) / count,
                "bytes": (size() - bytes_before) / count,
            }
            print(what, {key: round(value, 1) for key, value in found[what].items()}, flush=True)

        timed("node", nodes, lambda: [many.register() for _ in range(nodes)])
        timed("look", nodes, lambda: [many.answer(node) for node in many.nodes])
        timed("beat", nodes, lambda: [many.beat(node) for node in many.nodes])
        place = "benchmarks._superlink_app"
        components = Components(f"{place}:server", f"{place}:client")
        settings = Settings.from_sources({"clients": messages, "min-clients": 1, "rounds": 1}, {})
        app = write_app(folder / "fedhlm", settings, components)

        def answered() -> None:
            words = [program("flwr"), "run", str(app), "lo"]
            subprocess.run(words, env=environ, cwd=folder, check=True, stdout=subprocess.DEVNULL)
            first = sorted(many.nodes, key=lambda node: node.node_id)[:messages]
            left, until = messages, time.monotonic() + PATIENCE
            while left and time.monotonic() < until:
                taken = 0
                for node in first:
                    try:
                        taken += many.answer(node)
                    except httpx.HTTPStatusError as error:
                        found["errors"] = found.get("errors", 0) + 1
                        print(f"{error.request.url.path}: {error.response.status_code}")
                left -= taken
                if not taken:
                    time.sleep(1)
            if left:
                raise RuntimeError(f"{left} messages did not come")

        try:
            timed("message", messages, answered)
        finally:
            log = (folder / "superlink.log").read_text(errors="replace").splitlines()
            print(*[line for line in log if "Error" in line][:5], sep="\n")
        found["memory_MB"] = own.memory_info().rss / 1e6
        return found


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--messages", type=int, default=1000, help="at most one for each node")
    options = parser.parse_args()
    found = measure(options.nodes, min(options.messages, options.nodes))
    print(write_report("superlink", {**vars(options), **found}))


if __name__ == "__main__":
    main()
