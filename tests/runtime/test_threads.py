"""Chains in many threads, while other threads load packages. The full attack is ``python -m attacks.threads``."""

from pathlib import Path

import ee_export
from attacks.threads import FATAL, attack
from tests.runtime.altered import some_arrays


def test_no_answer_of_sixteen_threads_is_another_packages(sample: Path) -> None:
    chain = ee_export.load(sample, threads=1)
    counts = attack(sample, [some_arrays(chain, tokens) for tokens in (4, 12, 30)], predictions=1000)
    assert {what: counts[what] for what in FATAL} == dict.fromkeys(FATAL, 0)
    assert counts["predictions"] == 1000
    assert counts["damaged packages refused"] > 0
