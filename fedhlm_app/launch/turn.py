"""A run's turn on an existing Ray cluster.

Flower's client processes take every CPU that a cluster has: of two runs that started at once each
could get a part of them, and both would wait for the rest without end. So a run holds the named
actor `TURN` as long as it lasts, and the next one waits for it.

A process of its own takes the turn and holds it until its standard input is closed, which the end
of the launching process does in whatever way it comes: Ray ends the process that is connected to a
cluster when that is lost.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fedhlm_app.launch.app_folder import code_root
from fedhlm_app.settings.ray_cluster import Nodes, joined, reach, unfit
from fedhlm_app.transport.actor_names import NAMESPACE

TURN = "turn"
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster whose turn this run has."""

    address: str  # of its GCS
    nodes: Nodes


@contextmanager
def turn(environ: Mapping[str, str], on_wait: Callable[[str], None]) -> Iterator[Cluster | None]:
    """Have the cluster that the environment names for oneself; None where it names none.

    Parameters
    ----------
    environ : mapping
        Of the run.
    on_wait : callable
        Is told in words that another run has the cluster.

    Raises
    ------
    SettingsError
        When there is no cluster at the address, or it lets nobody in.
    """
    address = joined(environ)
    if not address:
        yield None
        return
    reach(address)
    holder = subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import hold; hold()"],
        cwd=code_root(),
        # Ray asks for long at an address where something else listens.
        env={**environ, "RAY_NUM_REDIS_GET_RETRIES": "1", "RAY_py_gcs_connect_timeout_s": "10"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # Ctrl-C goes to the whole group of the terminal, and the turn ends with the run.
        start_new_session=True,
    )
    assert holder.stdin is not None and holder.stdout is not None
    try:
        said: dict[str, Any] = {}
        while "nodes" not in said:
            said = json.loads(holder.stdout.readline() or '{"error": "no word of it"}')
            if "error" in said:
                raise unfit(address, f"no Ray cluster lets this run in ({said['error']})")
            if "wait" in said:
                on_wait(said["wait"])
        yield Cluster(said["address"], said["nodes"])
    finally:
        holder.stdin.close()
        try:
            holder.wait(30)
        except subprocess.TimeoutExpired:
            holder.kill()
            holder.wait()
        holder.stdout.close()


def hold() -> None:
    """Take the turn, say what the cluster has, hold it until standard input ends."""
    import ray

    class Turn:
        """Lives as long as this process; sent whole, so that no node needs this file for it."""

    try:
        ray.init(os.environ["RAY_ADDRESS"], namespace=NAMESPACE, log_to_driver=False)
    except Exception as error:  # whatever it is, the launching process says it
        _say(error=" ".join(str(error).split())[:200])
        return
    waits = False
    while True:
        try:
            held: Any = ray.remote(num_cpus=0)(Turn).options(name=TURN).remote()
            break
        except ValueError:  # the name is taken
            if not waits:
                _say(wait="waiting for another run on this Ray cluster")
            waits = True
            if select.select([sys.stdin], [], [], _LOOK_SECONDS)[0]:
                return
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    _say(
        address=ray.get_runtime_context().gcs_address,
        nodes=[(node.get("CPU", 0), node.get("GPU", 0)) for node in nodes],
    )
    sys.stdin.read()
    ray.kill(held)


def _say(**words: object) -> None:
    print(json.dumps(words), flush=True)
