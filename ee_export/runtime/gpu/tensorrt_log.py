"""TensorRT's messages. TensorRT keeps the first logger of a process, so builders and runtimes share the one of this module."""

from __future__ import annotations

import logging
import threading
from collections import deque

import tensorrt as trt

_log = logging.getLogger("ee_export.tensorrt")
_KEPT = 8
"""Most lines of an error message."""

_LINES: deque[str] = deque(maxlen=64)
_LOCK = threading.Lock()


class Log(trt.ILogger):
    """Stores the last errors, and passes other messages on to Python's ``ee_export.tensorrt`` logger. Thread-safe."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Take a message of TensorRT, from any thread."""
        if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
            with _LOCK:
                _LINES.append(" ".join(msg.split()))
        elif severity == trt.ILogger.Severity.WARNING:
            _log.info("%s", msg)
        else:
            _log.debug("%s", msg)


LOG = Log()


def last_errors() -> str:
    """Return the errors since the last call, each once, at most :data:`_KEPT`, oldest first, in one line."""
    with _LOCK:
        errors = list(dict.fromkeys(_LINES))
        _LINES.clear()
    return "; ".join(errors[-_KEPT:]) or "TensorRT gave no reason"
