"""The ClientApp as a SuperNode runs it: a process of its own for every message."""

from __future__ import annotations

import subprocess
import sys

INTRODUCTION = """
import sys
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from fedhlm_app.client_app import app

TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
node = {"partition-id": 4, "num-partitions": 5}
context = Context(1, 1, node, RecordDict(), {"llm-address": "127.0.0.1:1"})
reply = app(Message(RecordDict(), dst_node_id=1, message_type="query"), context)
print(reply.content["metrics"]["client"], "torch" in sys.modules)
"""


def test_a_device_says_who_it_is_without_pytorch() -> None:
    words = [sys.executable, "-c", INTRODUCTION]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["4", "False"], done.stderr
