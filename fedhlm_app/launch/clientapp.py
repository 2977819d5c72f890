"""The process that runs the ClientApp of a SuperNode, for all messages of a run.

Flower starts a process for each message, which imports PyTorch and loads the model anew.
`fedhlm_app.launch.supernode` starts this file as a script instead. It imports nothing of FedHLM:
the app is the one in the bundle that Flower sends, and what it has loaded stays loaded.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

import flwr.supernode.runtime.run_clientapp as flower
from flwr.supercore.app_utils import start_parent_process_monitor
from flwr.supercore.exit import ExitCode
from flwr.supercore.exit.exit_handler import trigger_exit_handlers


class Answered(BaseException):
    """A message has its reply; `code` is Flower's exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def answered(code: int, *_: object, **__: object) -> NoReturn:
    """Take the place of Flower's `flwr_exit`: all that it does but end the process."""
    trigger_exit_handlers(run_before_force_exit=True)
    trigger_exit_handlers(run_before_force_exit=False)
    raise Answered(code)


def main(address: str) -> None:
    """Answer a message for each line of standard input, which is the token of a task.

    The process ends with its input or its parent, and after a message that failed: whatever is
    wrong with it is gone with the next process.

    Parameters
    ----------
    address : str
        Of the SuperNode's Runtime API, on this machine.
    """
    start_parent_process_monitor(os.getppid())
    vars(flower)["flwr_exit"] = answered
    for line in sys.stdin:
        try:
            flower.run_clientapp(address, line.strip(), insecure=True)
        except Answered as reply:
            if reply.code != ExitCode.SUCCESS:
                sys.exit(1)
        # Flower's handlers of signals are those of a message.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    main(sys.argv[1])
