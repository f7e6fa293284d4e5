"""`doctor --gpu`, on executors that compute on the CPU: the trial's own logic, with the sample's real graphs. No GPU is shown by it."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ee_export.cli.main import cli
from ee_export.data.encode import Arrays
from ee_export.doctor import replay, trial
from ee_export.doctor.check import Check
from ee_export.doctor.checks import EXECUTORS, sample_package
from ee_export.errors import DeviceError
from ee_export.package.manifest import OperatingPoint
from ee_export.package.store import Package, open_package
from ee_export.policy.decide import assign_exits, score_pages
from ee_export.progress import Progress
from ee_export.runtime.load import load_package
from ee_export.runtime.plan import make_rules
from ee_export.verify import golden
from tests.doctor.test_diagnoses import WELL

TARGET = "cpu-fp32"
HOST, PER_SEGMENT, CONDITIONAL = EXECUTORS
DAMAGE = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


LOGITS: dict[tuple[str, bytes], dict[str, np.ndarray]] = {}
"""Logits of the sample by its first graph's file and the inputs' hash, because every test evaluates the same inputs."""


class OnCpu:
    """The chain's segments on the CPU. All of them run for every page, and the policy runs afterwards. A test can
    damage the answer."""

    def __init__(self, package: Package, target: str, damage: DAMAGE = lambda left, logits: (left, logits)) -> None:
        self.chain = load_package(package, target)
        self.damage = damage
        self.closed = False

    def run(self, inputs: Arrays, point: OperatingPoint) -> tuple[np.ndarray, np.ndarray]:
        assert not self.closed
        key = (
            self.chain.target.segments[0].file,
            hashlib.sha256(b"".join(values.tobytes() for values in inputs.values())).digest(),
        )
        if key not in LOGITS:
            LOGITS[key] = self.chain.logits(inputs)
        logits = [LOGITS[key][name] for name in self.chain.exits]
        package, target = self.chain.package, self.chain.target
        rules = make_rules(package.manifest, target, point.weights)
        probabilities, scores = score_pages(logits, rules, point.criterion, replay.count_tokens(inputs, rules))
        thresholds = [point.thresholds[name] for name in self.chain.exits[:-1]]
        exits = assign_exits(scores, thresholds, probabilities.argmax(2))
        return self.damage(exits, np.stack([logits[exit_index][row] for row, exit_index in enumerate(exits)]))

    def close(self) -> None:
        self.closed = True


class Whole(OnCpu):
    """The last exit's logits and no other."""

    def run(self, inputs: Arrays, point: OperatingPoint) -> tuple[np.ndarray, np.ndarray]:
        assert not self.closed and not point.thresholds
        return np.zeros(1, np.int64), self.damage(np.zeros(1), self.chain.logits(inputs)["final"])[1]


@pytest.fixture
def opened() -> list[OnCpu]:
    """The executors that a trial opened."""
    return []


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "DRAWS", 25)


def make_setup(opened: list[OnCpu], **damages: DAMAGE) -> trial.TrialSetup:
    """`compile` adds nothing: the target that is tried is the package's own."""

    def opens(name: str) -> Callable[[Package, str], OnCpu]:
        def open_one(package: Package, target: str) -> OnCpu:
            opened.append(OnCpu(package, target, *([damages[name]] if name in damages else [])))
            return opened[-1]

        return open_one

    return trial.TrialSetup(lambda package, target, progress: package, {name: opens(name) for name in EXECUTORS}, Whole)


def run_trial(setup: trial.TrialSetup, barred: dict[str, str] | None = None) -> dict[str, Check]:
    shipped = sample_package()
    assert shipped is not None
    checks = trial.try_target(shipped, TARGET, setup, barred or {}, lambda *_: None, runs=3)
    return {check.name.removeprefix(f"{TARGET}: "): check for check in checks}


def states(checks: dict[str, Check]) -> dict[str, str]:
    return {name: check.status for name, check in checks.items()}


def test_executors_that_agree_are_ok_and_compared_with_one_engine(opened: list[OnCpu]) -> None:
    checks = run_trial(make_setup(opened))
    assert set(states(checks).values()) == {"ok"}
    assert list(checks) == ["engines", *EXECUTORS, "agreement", "latency"]
    assert all(check.required for check in checks.values())
    assert "bit for bit the same on host, graphs, conditional" in checks["agreement"].detail
    rows = checks["latency"].facts["rows"]
    assert [row["executor"] for row in rows if row["exit"] == "never"] == ["one engine", *EXECUTORS]
    assert {row["exit"] for row in rows if row["executor"] == HOST} > {"never", "vision", "encoder.4"}
    assert "of one engine's time" in checks["latency"].detail
    assert [executor.closed for executor in opened] == [True] * 3


def test_the_trial_does_not_change_the_package(
    opened: list[OnCpu], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    shipped = sample_package()
    assert shipped is not None
    compiled_paths: list[Path] = []

    def compiles(package: Package, target: str, progress: Progress) -> Package:
        compiled_paths.append(package.path)
        return package

    before = {path: path.stat().st_mtime_ns for path in shipped.rglob("*")}
    run_trial(dataclasses.replace(make_setup(opened), compile=compiles))
    assert {path: path.stat().st_mtime_ns for path in shipped.rglob("*")} == before
    assert compiled_paths[0] != shipped
    assert list(tmp_path.iterdir()) == []


def off_by_a_bit(left: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One bit of one page, if a batch has several pages."""
    if len(left) == 1:
        return left, logits
    changed = logits.copy()
    changed[-1, 0] = np.nextafter(changed[-1, 0], np.float32(9))
    return left, changed


def test_one_bit_of_one_logit_in_a_batch_is_a_disagreement(opened: list[OnCpu]) -> None:
    checks = run_trial(make_setup(opened, **{CONDITIONAL: off_by_a_bit}))
    assert [name for name, check in checks.items() if check.wrong] == ["agreement"]
    assert "conditional and host, batch 3: same exits, logits differ by" in checks["agreement"].detail


def test_an_executor_with_other_exits_fails_and_the_others_are_still_compared(opened: list[OnCpu]) -> None:
    checks = run_trial(make_setup(opened, **{PER_SEGMENT: lambda left, logits: (np.minimum(left + 1, 6), logits)}))
    assert [name for name, check in checks.items() if check.wrong] == [PER_SEGMENT]
    assert "a page that must exit at vision exits at text.40" in checks[PER_SEGMENT].detail
    assert checks["agreement"].detail.endswith("on host, conditional")
    assert PER_SEGMENT not in {row["executor"] for row in checks["latency"].facts["rows"]}


def test_the_policy_detects_exits_that_all_executors_get_wrong(opened: list[OnCpu]) -> None:
    late: DAMAGE = lambda left, logits: (left if len(left) == 1 else np.minimum(left + 1, 6), logits)  # noqa: E731
    checks = run_trial(make_setup(opened, **dict.fromkeys(EXECUTORS, late)))
    assert checks["agreement"].status == "failed"
    assert "host, batch 3: exits and the policy's differ" in checks["agreement"].detail


@pytest.mark.parametrize("value", [np.nan, 1e3])
def test_logits_beyond_the_tolerance_fail(opened: list[OnCpu], value: float) -> None:
    checks = run_trial(make_setup(opened, **{HOST: lambda left, logits: (left, logits + np.float32(value))}))
    assert checks[HOST].status == "failed"
    assert checks["agreement"].status == "ok"  # of the other two


def test_engines_with_other_answers_than_the_trained_model_fail_at_any_tolerance(
    opened: list[OnCpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = golden.read

    # A target's own golden logits are its own output, so they are always within its tolerance.
    def drifted(package: Package):
        pages, exits = real(package)
        flipped = [
            dataclasses.replace(
                page, own={TARGET: page.logits}, logits={name: -values for name, values in page.logits.items()}
            )
            for page in pages
        ]
        return flipped, exits

    monkeypatch.setattr(golden, "read", drifted)
    checks = run_trial(make_setup(opened))
    assert checks[HOST].status == "failed"
    assert "the trained model's" in checks[HOST].detail


def test_an_executor_that_does_not_open_fails_without_the_others(opened: list[OnCpu]) -> None:
    whole = make_setup(opened)

    def refuses(package: Package, target: str) -> OnCpu:
        raise DeviceError("cuGraphInstantiate: CUDA_ERROR_NOT_SUPPORTED")

    checks = run_trial(dataclasses.replace(whole, executors={**whole.executors, CONDITIONAL: refuses}))
    assert [name for name, check in checks.items() if check.wrong] == [CONDITIONAL]
    assert checks[CONDITIONAL].detail == "cuGraphInstantiate: CUDA_ERROR_NOT_SUPPORTED"
    assert [executor.closed for executor in opened] == [True] * 2


def test_an_executor_that_cannot_run_here_is_skipped_and_not_wrong(opened: list[OnCpu]) -> None:
    checks = run_trial(make_setup(opened), {CONDITIONAL: "the driver is too old"})
    assert (checks[CONDITIONAL].status, checks[CONDITIONAL].detail) == ("skipped", "the driver is too old")
    assert not [name for name, check in checks.items() if check.wrong]


def test_a_single_executor_is_not_reported_as_equal_to_others(opened: list[OnCpu]) -> None:
    checks = run_trial(make_setup(opened), {PER_SEGMENT: "no", CONDITIONAL: "no"})
    assert checks["agreement"].status == "skipped"
    assert "nothing to compare it with" in checks["agreement"].detail
    assert checks["agreement"].wrong


def test_checks_that_need_engines_are_skipped_if_the_build_fails(opened: list[OnCpu]) -> None:
    def fails(package: Package, target: str, progress: Progress) -> Package:
        raise DeviceError("final.onnx: TensorRT 11.4.0 built no engine of it: out of memory")

    checks = run_trial(dataclasses.replace(make_setup(opened), compile=fails))
    assert "out of memory" in checks["engines"].detail
    assert {status for name, status in states(checks).items() if name != "engines"} == {"skipped"}
    assert all(check.wrong for check in checks.values())


def test_one_engine_that_gives_other_logits_is_not_compared_with(opened: list[OnCpu]) -> None:
    wrong = dataclasses.replace(
        make_setup(opened),
        whole=lambda package, target: Whole(package, target, lambda left, logits: (left, logits + 1)),
    )
    checks = run_trial(wrong)
    assert [name for name, check in checks.items() if check.wrong] == ["latency"]
    assert "as one engine: exit 'final': golden logits differ" in checks["latency"].detail


def test_an_executor_that_does_not_close_is_reported(opened: list[OnCpu], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: OnCpu) -> None:
        raise DeviceError("cuMemFree: CUDA_ERROR_ILLEGAL_ADDRESS")

    monkeypatch.setattr(OnCpu, "close", fails)
    checks = run_trial(make_setup(opened))
    assert sum(name.startswith("closing") and check.wrong for name, check in checks.items()) == 3


def test_the_command_reports_the_trial_with_its_times(
    opened: list[OnCpu], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The full command on an invented GPU. The trial is of the CPU's target under another name."""

    def compiles(package: Package, target: str, progress: Progress) -> Package:
        own = dataclasses.replace(package.manifest.targets[TARGET], compiled={"GPU": "none: simulated"})
        manifest = dataclasses.replace(package.manifest, targets={target: own})
        return dataclasses.replace(package, manifest=manifest)

    real = golden.read

    def read(package: Package):
        pages, exits = real(open_package(package.path))  # no file contains the invented target
        return pages, {
            **exits,
            **{name.replace(TARGET, "tensorrt-fp16"): exit_indices for name, exit_indices in exits.items()},
        }

    monkeypatch.setattr(golden, "read", read)
    monkeypatch.setattr(trial, "RUNS", 3)
    monkeypatch.setattr("ee_export.doctor.checks.run_probe", WELL.__getitem__)
    monkeypatch.setattr(
        "ee_export.doctor.gpu_trial.make_setup", lambda: dataclasses.replace(make_setup(opened), compile=compiles)
    )
    command = ["doctor", "--gpu", "--json", "--report", str(tmp_path / "report.md")]
    done = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    got = json.loads(done.stdout)
    assert got["gpu_targets"] == ["tensorrt-fp16"]
    assert got["wrong"] == []
    text = (tmp_path / "report.md").read_text()
    assert "All required checks are ok." in text
    assert "## tensorrt-fp16: latency" in text
    assert "| one engine | never |" in text
    assert "GPU none: simulated" in text
