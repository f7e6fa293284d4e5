"""Replay golden pages on every executor of a GPU, and compare the executors with each other."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from ee_export.data.encode import Arrays, count_tokens_read
from ee_export.doctor.check import Finding
from ee_export.errors import NotEqual
from ee_export.package.manifest import OperatingPoint
from ee_export.package.store import Package
from ee_export.policy.decide import ExitRule, assign_exits, score_pages
from ee_export.progress import Progress
from ee_export.runtime.plan import make_rules
from ee_export.verify import golden

DRAWS = 200
"""Random sets of thresholds at each batch size."""
BATCHES = (1, 3, 8)
_CRITERION = "max_probability"
_MARGIN = 1e-3
"""Distance of a drawn threshold from a page's score, far above the differences that the order of sums makes."""


class TrialExecutor(Protocol):
    """One way to run a target's chain on a GPU."""

    def run(self, inputs: Arrays, point: OperatingPoint) -> tuple[np.ndarray, np.ndarray]:
        """Evaluate a batch: the index of each page's exit, int64 ``[B]``, and its raw logits there, float32 ``[B, C]``.

        Args:
            inputs: encoded pages of one text length, on the host.
            point: criterion and thresholds.

        Raises:
            DeviceError: the device or a library failed.
        """
        ...

    def close(self) -> None:
        """Free all memory of the device."""
        ...


def replay_golden(executor: TrialExecutor, package: Package, target_name: str) -> Finding:
    """Verify logits and exits on golden pages.

    Every page exits at each exit in turn, with logits within the target's tolerance. At each operating point, every
    page exits where the package records it.

    Raises:
        NotEqual: a result differs. The message names it.
    """
    target, exits = package.target(target_name), package.manifest.exits
    pages, expected = golden.read(package)
    differences, drift = dict.fromkeys(exits, 0.0), 0.0
    for number, page in enumerate(pages):
        for index, name in enumerate(exits):
            reached, logits = executor.run(page.inputs, point_that_exits_at(exits, name))
            if int(reached[0]) != index:
                raise NotEqual(f"a page that must exit at {name} exits at {exits[int(reached[0])]}")
            difference = float(np.abs(logits - page.of(target_name)[name]).max())
            differences[name] = max(differences[name], difference if difference == difference else float("inf"))
            drift = max(drift, float(np.abs(logits - page.logits[name]).max()))
        answer, trained = int(logits.argmax()), int(page.logits[exits[-1]].argmax())
        if answer != trained:
            labels = package.manifest.labels
            raise NotEqual(
                f"golden page {number} has the label {labels[answer]}, expected {labels[trained]}, the trained model's"
            )
    golden.require_same(differences, target.tolerance, target_name)
    for name, point in target.operating_points.items():
        for number, page in enumerate(pages):
            reached, _ = executor.run(page.inputs, point)
            index = int(expected[f"{target_name}/{name}"][number])
            if int(reached[0]) != index:
                raise NotEqual(
                    f"operating point '{name}': golden page {number} exits at {exits[int(reached[0])]}, expected {exits[index]}"
                )
    largest = max(differences.values())
    detail = (
        f"{len(pages)} golden pages at {len(exits)} exits: logits within {largest:.0e} (allowed {target.tolerance:.0e}) of the "
        f"target's own, {drift:.0e} of the trained model's"
    )
    return Finding(
        "ok", detail, facts={"differences": differences, "tolerance": target.tolerance, "from_trained": drift}
    )


def point_that_exits_at(exits: Sequence[str], name: str) -> OperatingPoint:
    """An operating point at which every page exits at ``name``."""
    return OperatingPoint(_CRITERION, {exit: 0.0 if exit == name else None for exit in exits[:-1]})


def compare_executors(
    executors: Mapping[str, TrialExecutor], package: Package, target_name: str, progress: Progress
) -> Finding:
    """Verify that all executors give the same exits and the same bits of logits.

    Thresholds are drawn at random for several batch sizes. The exits are compared with the policy's too.

    Raises:
        NotEqual: two results differ. The message names the batch size and the page.
    """
    if not executors:
        return Finding("skipped", "no executor replayed the golden pages")
    (first, *others), exits = list(executors), package.manifest.exits
    rng = np.random.default_rng(0)
    pages = [page.inputs for page in golden.read(package)[0]]
    for done, batch in enumerate(BATCHES):
        progress("agreement", done, len(BATCHES))
        inputs = _make_batch(pages, batch)
        logits_by_exit = [executors[first].run(inputs, point_that_exits_at(exits, name))[1] for name in exits]
        exit_rules = make_rules(package.manifest, package.target(target_name), {})
        probabilities, scores = score_pages(logits_by_exit, exit_rules, _CRITERION, count_tokens(inputs, exit_rules))
        for _ in range(DRAWS):
            thresholds = _draw_thresholds(rng, scores[:-1])
            point = OperatingPoint(_CRITERION, dict(zip(exits, thresholds, strict=False)))
            expected, logits = executors[first].run(inputs, point)
            policy = assign_exits(scores, thresholds, probabilities.argmax(2))
            _require_equal(expected, policy, f"{first}, batch {batch}: exits and the policy's", exits)
            for name in others:
                reached, other = executors[name].run(inputs, point)
                _require_equal(reached, expected, f"{name} and {first}, batch {batch}: exits", exits)
                if other.tobytes() != logits.tobytes():
                    difference = float(np.abs(other - logits).max())
                    raise NotEqual(f"{name} and {first}, batch {batch}: same exits, logits differ by {difference:.1e}")
    progress("agreement", len(BATCHES), len(BATCHES))
    sizes = ", ".join(map(str, BATCHES))
    detail = f"{DRAWS} sets of random thresholds at batch sizes {sizes}: exits equal the policy's"
    if not others:
        return Finding("skipped", f"{detail}; {first} ran alone, so there was nothing to compare it with")
    return Finding("ok", f"{detail}, logits bit for bit the same on {', '.join(executors)}")


def count_tokens(inputs: Arrays, exit_rules: Sequence[ExitRule]) -> list[list[int]]:
    """Count the text tokens that each exit has read of each page of a batch, ``[E][B]``."""
    pages = [
        {name: values[index : index + 1] for name, values in inputs.items()} for index in range(_count_rows(inputs))
    ]
    return [[count_tokens_read(page, rule.reads) for page in pages] for rule in exit_rules]


def _count_rows(inputs: Arrays) -> int:
    return len(next(iter(inputs.values())))


def _make_batch(pages: Sequence[Arrays], size: int) -> Arrays:
    """Make a batch of one text length: the images of all pages, and the first page's tokens, rotated."""
    rows = []
    for index in range(size):
        row = {name: np.roll(values, index, axis=1) for name, values in pages[0].items()}
        if "pixel_values" in row:
            row["pixel_values"] = pages[index % len(pages)]["pixel_values"]
        rows.append(row)
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _draw_thresholds(rng: np.random.Generator, scores: np.ndarray) -> list[float | None]:
    """Draw a threshold per exit, or none: near a page's score ``[E, B]``, but at a distance from every score."""
    thresholds: list[float | None] = []
    for row in scores:
        near = float(rng.choice(row)) + float(rng.choice([-1, 1])) * _MARGIN
        clear = float(np.abs(row - near).min()) > _MARGIN / 10
        thresholds.append(near if clear and rng.random() < 0.7 else None)
    return thresholds


def _require_equal(reached: np.ndarray, expected: np.ndarray, subject: str, exits: Sequence[str]) -> None:
    if (reached != expected).any():
        row = int(np.flatnonzero(reached != expected)[0])
        raise NotEqual(
            f"{subject} differ: page {row} exits at {exits[int(reached[row])]}, expected {exits[int(expected[row])]}"
        )
