"""Starting a run: `flwr run` on a private SuperLink that nothing stale can disturb."""

from fedhlm_app.launch.app_folder import write_app
from fedhlm_app.launch.launcher import (
    Components,
    Interrupted,
    LaunchError,
    Listener,
    RunResult,
    launch,
)

__all__ = [
    "Components", "Interrupted", "LaunchError", "Listener", "RunResult", "launch", "write_app",
]  # fmt: skip
