"""Early-exit document classifiers: cut at their exits, exported, and run only as far as a page needs."""

from ee_export.errors import EeError
from ee_export.limits import Limits
from ee_export.ocr import tesseract
from ee_export.page import Page, read_page
from ee_export.runtime.answer import Answer, Step
from ee_export.runtime.chain import Chain, load

__version__ = "0.1.0"

__all__ = ["Answer", "Chain", "EeError", "Limits", "Page", "Step", "__version__", "load", "read_page", "tesseract"]
