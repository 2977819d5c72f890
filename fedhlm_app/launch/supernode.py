"""Flower's SuperNode with a ClientApp process that stays (`fedhlm serve supernode`)."""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from logging import ERROR
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore import log
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient

from fedhlm_app.launch.processes import free_port

SCRIPT = Path(__file__).with_name("clientapp.py")
OURS = ("--isolation", "--host", "--port", "--ssl-", "--superexec-auth-secret-file")
"""Options of Flower's that say how SuperNode and ClientApp find each other."""
IDLE_SECONDS = 3.0
"""Flower's wait between two questions to the SuperLink; shorter waits are for a reply."""
SOON, REPLY, SHARE = 0.1, 0.03, 0.25
"""Shortest waits for a message (each question costs the SuperLink some 5 ms) and for the
ClientApp's reply, in seconds; both grow by this share of the time while nothing comes."""
AGAIN = 0.05
"""First wait for a part of a message that is still on its way to the SuperLink, s; Flower's: 1."""


class Waits:
    """The waits of a SuperNode's loop: short while a run goes on, Flower's own otherwise."""

    def __init__(self) -> None:
        self.arrived = Event()
        self._idle, self._since = True, time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait less than `seconds`, where there is reason to."""
        now, idle = time.monotonic(), seconds >= IDLE_SECONDS
        if idle != self._idle:
            self._idle, self._since = idle, now
        if not idle:
            self.arrived.set()
        time.sleep(min(seconds, (SOON if idle else REPLY) + SHARE * (now - self._since)))


class Worker:
    """The ClientApp process: one for each run, and another when it has ended.

    Parameters
    ----------
    address : str
        Of the SuperNode's Runtime API.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._run = 0
        self._process: subprocess.Popen[str] | None = None

    def take(self, token: str, run: int) -> None:
        """Have a task done."""
        if self._process is None or self._run != run or not self._tell(token):
            self.end()
            # `-P`: names of files beside the script are no modules of the app.
            words = [sys.executable, "-P", str(SCRIPT), self._address]
            self._process = subprocess.Popen(words, stdin=subprocess.PIPE, text=True)
            self._run = run
            if not self._tell(token):
                raise OSError("the process of the ClientApp ended as it began")

    def _tell(self, token: str) -> bool:
        assert self._process is not None and self._process.stdin is not None
        if self._process.poll() is not None:
            return False
        try:
            self._process.stdin.write(token + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return False
        return True

    def end(self) -> None:
        """Let the process end; it is at work on nothing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def run_supernode(words: Sequence[str]) -> None:
    """Run a SuperNode until the process is asked to stop.

    Parameters
    ----------
    words : sequence of str
        Options of `flower-supernode`.

    Raises
    ------
    ValueError
        When one of them is not for the user to say here.
    """
    for word in words:
        if word.startswith(OURS):
            raise ValueError(
                f"{word.partition('=')[0]}: not here; the ClientApp's process is reached on a "
                "free port of 127.0.0.1 (`flower-supernode` has this option)"
            )
    # Modules, which functions of the same name hide in their packages.
    flower = importlib.import_module("flwr.supernode.cli.flower_supernode")
    loop = importlib.import_module("flwr.supernode.start_client_internal")
    port, waits = free_port(), Waits()
    vars(loop)["time"] = SimpleNamespace(**(vars(time) | {"sleep": waits.sleep}))
    vars(loop)["pull_objects"] = partial(loop.pull_objects, initial_backoff=AGAIN)
    sys.argv = [
        "fedhlm serve supernode", *words, "--isolation=process", "--host=127.0.0.1",
        f"--port={port}",
    ]  # fmt: skip
    arguments = f"127.0.0.1:{port}", waits.arrived
    Thread(target=_hand_over, args=arguments, name="clientapp", daemon=True).start()
    flower.flower_supernode()


def _hand_over(address: str, arrived: Event) -> None:
    """Give the SuperNode's tasks to the process of its ClientApp, as Flower's SuperExec does."""
    try:
        client = RuntimeHttpClient.from_server_address(
            server_address=address,
            insecure=True,
            root_certificates=None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec")],
            retry_invoker=make_simple_http_retry_invoker(),
        )
        worker, wanted = (
            Worker(address),
            AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]),
        )
        while True:
            arrived.wait()
            arrived.clear()
            found = client.AcquireTask(wanted)
            if found.token:
                worker.take(found.token, found.task.run_id)
    except Exception as error:
        log(ERROR, "the ClientApp cannot be started", exc_info=error)
        # The handler of Flower's main thread, which ends the SuperNode in good order.
        signal.raise_signal(signal.SIGTERM)
