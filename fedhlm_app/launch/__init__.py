"""Starting a run: `flwr run` on a private SuperLink that nothing stale can disturb."""

from fedhlm_app.launch.app_folder import Components, write_app
from fedhlm_app.launch.launcher import Interrupted, Listener, RunResult, launch
from fedhlm_app.launch.superlink import LaunchError

__all__ = [
    "Components", "Interrupted", "LaunchError", "Listener", "RunResult", "launch", "write_app",
]  # fmt: skip
