"""Where the trace of a refused command goes: people see one line, and may need the rest."""

from __future__ import annotations

import logging
import os
import traceback
from pathlib import Path

from fedhlm_app.results.runs import write_atomically

logger = logging.getLogger(__name__)


def error_log() -> Path:
    """The file that holds the trace of the last command that was refused."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "fedhlm" / "last-error.log"


def keep_trace(error: BaseException) -> None:
    """Write an error's trace to `error_log`; that this fails is no reason to fail otherwise."""
    path = error_log()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(traceback.format_exception(error)))
    except OSError as failure:
        logger.info("the trace of %r is not kept: %s", error, failure)
