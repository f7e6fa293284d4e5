"""A bounded run of the attack suite. Each family runs, and no attack is untyped, crashes, hangs or uses unbounded
memory.

The full run is ``python -m attacks PACKAGE --whole``, see docs/explanation/testing.md.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from attacks import report, soak
from attacks.families import FAMILIES
from attacks.outcome import Outcome
from attacks.run import choose, run_attacks

pytestmark = pytest.mark.slow
SEED = 0


@pytest.fixture(scope="module")
def outcomes(sample: Path) -> list[Outcome]:
    """Outcomes of the least number of attacks of every family on the shipped package."""
    return run_attacks(sample, choose(sample, FAMILIES, 0.0, SEED), SEED)


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", FAMILIES)
def test_every_attack_is_refused_or_answered(outcomes: list[Outcome], sample: Path, family: str) -> None:
    ours = [outcome for outcome in outcomes if outcome.family == family]
    assert len(ours) >= min(FAMILIES[family].least, FAMILIES[family].count(sample))
    failed = [outcome for outcome in ours if outcome.failed]
    assert not failed, "\n" + report.findings(failed, sample, SEED)


@pytest.mark.exhaustive
def test_attacks_do_not_change_the_package(outcomes: list[Outcome], sample: Path) -> None:
    from ee_export.package.store import open_package

    open_package(sample).check()
    assert outcomes


def test_the_suite_notices_a_crash_a_hang_and_memory(sample: Path) -> None:
    outcomes = run_attacks(sample, [("mistakes", index) for index in range(6)], SEED, workers=1)
    assert [outcome.kind for outcome in outcomes] == ["crash", "hang", "memory", "wrong", "refused", "answered"]
    assert [outcome.error for outcome in outcomes[:2]] == ["SIGSEGV", "timeout"]
    assert outcomes[3].message.startswith("error message has more than one line")


def test_one_attack_is_replayed_by_its_index(sample: Path) -> None:
    command = [sys.executable, "-m", "attacks", str(sample), "--replay", "golden:107"]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=120)
    assert "a member with a header of 1 MB" in done.stdout
    assert done.returncode in (0, 1)


def test_two_runs_of_one_seed_choose_the_same_attacks(sample: Path) -> None:
    first, second = (choose(sample, FAMILIES, 0.05, 3) for _ in range(2))
    assert first == second != choose(sample, FAMILIES, 0.05, 4)


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")  # Pillow warns of odd metadata
def test_memory_is_flat_over_odd_pages_and_loads(sample: Path, tmp_path: Path) -> None:
    samples, tally, untyped = soak.predictions(sample, None, 400, SEED, tmp_path)
    assert not untyped
    assert sum(tally.values()) == 400
    assert soak.growth_mb(samples) <= soak.BOUND_MB
    assert soak.growth_mb(soak.loads(sample, 30)) <= soak.BOUND_MB
