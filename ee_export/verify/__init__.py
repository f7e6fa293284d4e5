"""Prove that a package answers as on the machine that built it, and compare packages and answers."""

from ee_export.verify.agreement import compare_pages
from ee_export.verify.difference import find_differences
from ee_export.verify.drift import compare_answers, summarize_answer
from ee_export.verify.replay import verify_package
from ee_export.verify.shadow import compare_with_shadow

__all__ = [
    "compare_answers",
    "compare_pages",
    "find_differences",
    "summarize_answer",
    "compare_with_shadow",
    "verify_package",
]
