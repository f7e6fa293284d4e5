"""Proof that a package answers as it did where it was built, and comparisons of packages and of answers."""

from ee_export.verify.agreement import compare_pages
from ee_export.verify.difference import differences
from ee_export.verify.drift import compare_answers, seen
from ee_export.verify.replay import verify_package
from ee_export.verify.shadow import unlike

__all__ = ["compare_answers", "compare_pages", "differences", "seen", "unlike", "verify_package"]
