"""Early-exit document classifiers: cut at their exits, exported, and run only as far as a page needs."""

import os
import sys

if "ORT_DISABLE_TELEMETRY" not in os.environ:  # a user's own value stays, whatever it is
    # From version 1.29 on, onnxruntime reports to Microsoft on Linux too. It reads the variable when it is imported.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    if "onnxruntime" in sys.modules:  # too late for the first report, but not for those on models and runs
        sys.modules["onnxruntime"].disable_telemetry_events()

from ee_export.data.limits import Limits
from ee_export.data.ocr import tesseract
from ee_export.data.page import Page, read_page
from ee_export.errors import (
    BadCheckpoint,
    BadData,
    BadGraph,
    BadLogits,
    BadModel,
    BadPackage,
    BadPage,
    BadRequest,
    BadText,
    DeviceError,
    EeError,
    ForkedError,
    NotEqual,
    NoText,
    OcrFailed,
    UnexpectedError,
)
from ee_export.runtime.answer import Answer, Step
from ee_export.runtime.chain import Chain
from ee_export.runtime.load import load
from ee_export.runtime.open_session import open_session
from ee_export.runtime.session import Session, SessionAnswer, SessionResults
from ee_export.version import __version__

__all__ = [
    "load",
    "open_session",
    "Session",
    "SessionAnswer",
    "SessionResults",
    "Chain",
    "Answer",
    "Step",
    "Page",
    "read_page",
    "Limits",
    "tesseract",
    "BadCheckpoint",
    "BadData",
    "BadGraph",
    "BadLogits",
    "BadModel",
    "BadPackage",
    "BadPage",
    "BadRequest",
    "BadText",
    "DeviceError",
    "EeError",
    "ForkedError",
    "NotEqual",
    "NoText",
    "OcrFailed",
    "UnexpectedError",
    "__version__",
]
