"""TensorRT's messages. TensorRT keeps the first logger of a process, so builders and runtimes share the one of this module."""

from __future__ import annotations

import logging
import threading
from collections import deque

import tensorrt as trt

_log = logging.getLogger("ee_export.tensorrt")
_KEPT = 8
"""Most lines of an error message."""


class Log(trt.ILogger):
    """Stores the last errors, and passes other messages on to Python's ``ee_export.tensorrt`` logger. Thread-safe."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._lines: deque[str] = deque(maxlen=64)
        self._lock = threading.Lock()

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Take a message of TensorRT, from any thread."""
        if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
            with self._lock:
                self._lines.append(" ".join(msg.split()))
        elif severity == trt.ILogger.Severity.WARNING:
            _log.info("%s", msg)
        else:
            _log.debug("%s", msg)

    def take_errors(self) -> list[str]:
        """Return the stored errors, oldest first and each once, and forget them."""
        with self._lock:
            errors = list(dict.fromkeys(self._lines))
            self._lines.clear()
        return errors


LOG = Log()


def last_errors() -> str:
    """The errors since the last call, at most :data:`_KEPT`, oldest first, in one line."""
    return "; ".join(LOG.take_errors()[-_KEPT:]) or "TensorRT gave no reason"
