"""TensorRT's messages. It keeps one logger a process, the first it is given, so there is one here for builders and runtimes."""

from __future__ import annotations

import logging
import threading
from collections import deque

import tensorrt as trt

_log = logging.getLogger("ee_export.tensorrt")
_KEPT = 8
"""Lines of an error message, at most."""


class Log(trt.ILogger):
    """Keeps the last errors, and passes the rest on to Python's ``ee_export.tensorrt`` logger. Thread-safe."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._lines: deque[str] = deque(maxlen=64)
        self._lock = threading.Lock()

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Called by TensorRT, from whatever thread."""
        if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
            with self._lock:
                self._lines.append(" ".join(msg.split()))
        elif severity == trt.ILogger.Severity.WARNING:
            _log.info("%s", msg)
        else:
            _log.debug("%s", msg)


LOG = Log()


def last_errors() -> str:
    """The last errors since this was last asked, oldest first, in one line."""
    with LOG._lock:
        lines = list(dict.fromkeys(LOG._lines))[-_KEPT:]
        LOG._lines.clear()
    return "; ".join(lines) or "TensorRT did not say why"
