"""Golden pages on every executor of a GPU, and the executors against each other."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from ee_export.data.encode import Arrays, count_tokens_read
from ee_export.doctor.check import Look
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
"""Distance of a drawn threshold from the score that it was drawn at: far more than what sums in another order change."""


class Executor(Protocol):
    """One way to run a target's chain on a GPU."""

    def run(self, inputs: Arrays, point: OperatingPoint) -> tuple[np.ndarray, np.ndarray]:
        """Index of the exit where each page leaves, int64 ``[B]``, and its raw logits there, float32 ``[B, C]``.

        Args:
            inputs: encoded pages of one text length, on the host.
            point: which criterion and thresholds decide.

        Raises:
            DeviceError: the device or a library failed.
        """
        ...

    def close(self) -> None:
        """Give back all memory of the device."""
        ...


def replayed(executor: Executor, package: Package, target_name: str) -> Look:
    """Golden pages, made to leave at each exit in turn: logits within the target's tolerance; and the exits of its operating points.

    Raises:
        NotEqual: something differs; names it.
    """
    target, exits = package.target(target_name), package.manifest.exits
    pages, expected = golden.read(package)
    differences, drift = dict.fromkeys(exits, 0.0), 0.0
    for number, page in enumerate(pages):
        for at, name in enumerate(exits):
            left, logits = executor.run(page.inputs, make_exit_point(exits, name))
            if int(left[0]) != at:
                raise NotEqual(f"a page that must leave at {name} left at {exits[int(left[0])]}")
            off = float(np.abs(logits - page.of(target_name)[name]).max())
            differences[name] = max(differences[name], off if off == off else float("inf"))
            drift = max(drift, float(np.abs(logits - page.logits[name]).max()))
        answer, trained = int(logits.argmax()), int(page.logits[exits[-1]].argmax())
        if answer != trained:
            labels = package.manifest.labels
            raise NotEqual(
                f"golden page {number} is answered {labels[answer]}, and by the trained model {labels[trained]}"
            )
    golden.require_same(differences, target.tolerance, target_name)
    for name, point in target.operating_points.items():
        for number, page in enumerate(pages):
            left, _ = executor.run(page.inputs, point)
            want = int(expected[f"{target_name}/{name}"][number])
            if int(left[0]) != want:
                raise NotEqual(
                    f"operating point '{name}': golden page {number} left at {exits[int(left[0])]}, expected {exits[want]}"
                )
    largest = max(differences.values())
    said = (
        f"{len(pages)} golden pages at {len(exits)} exits: logits within {largest:.0e} (allowed {target.tolerance:.0e}) of the "
        f"target's own, {drift:.0e} of the trained model's"
    )
    return Look("ok", said, facts={"differences": differences, "tolerance": target.tolerance, "from_trained": drift})


def make_exit_point(exits: Sequence[str], name: str) -> OperatingPoint:
    """An operating point at which every page leaves at one exit."""
    return OperatingPoint(_CRITERION, {each: 0.0 if each == name else None for each in exits[:-1]})


def agreed(executors: Mapping[str, Executor], package: Package, target_name: str, progress: Progress) -> Look:
    """Random thresholds, several batch sizes: the same exits and the same bits of logits on all executors, and the exits of the policy.

    Raises:
        NotEqual: two differ; says at which batch size and where.
    """
    if not executors:
        return Look("skipped", "no executor replayed the golden pages")
    (first, *others), exits = list(executors), package.manifest.exits
    rng = np.random.default_rng(0)
    pages = [page.inputs for page in golden.read(package)[0]]
    for done, batch in enumerate(BATCHES):
        progress("agreement", done, len(BATCHES))
        inputs = _batch(pages, batch)
        ran = [executors[first].run(inputs, make_exit_point(exits, name))[1] for name in exits]
        found = make_rules(package.manifest, package.target(target_name), {})
        probabilities, scores = score_pages(ran, found, _CRITERION, text_known(inputs, found))
        for _ in range(DRAWS):
            thresholds = _drawn(rng, scores[:-1])
            point = OperatingPoint(_CRITERION, dict(zip(exits, thresholds, strict=False)))
            want, logits = executors[first].run(inputs, point)
            policy = assign_exits(scores, thresholds, probabilities.argmax(2))
            _require_equal(want, policy, f"{first}, batch {batch}: exits and the policy's", exits)
            for name in others:
                left, other = executors[name].run(inputs, point)
                _require_equal(left, want, f"{name} and {first}, batch {batch}: exits", exits)
                if other.tobytes() != logits.tobytes():
                    off = float(np.abs(other - logits).max())
                    raise NotEqual(f"{name} and {first}, batch {batch}: same exits, logits differ by {off:.1e}")
    progress("agreement", len(BATCHES), len(BATCHES))
    sizes = ", ".join(map(str, BATCHES))
    said = f"{DRAWS} sets of random thresholds at batch sizes {sizes}: exits as the policy says"
    if not others:
        return Look("skipped", f"{said}; {first} ran alone, so there was nothing to compare it with")
    return Look("ok", f"{said}, logits bit for bit the same on {', '.join(executors)}")


def text_known(inputs: Arrays, found: Sequence[ExitRule]) -> list[list[int]]:
    """Text tokens that each exit knows of each page of a batch, ``[E][B]``."""
    pages = [{name: values[at : at + 1] for name, values in inputs.items()} for at in range(_rows(inputs))]
    return [[count_tokens_read(page, rule.reads) for page in pages] for rule in found]


def _rows(inputs: Arrays) -> int:
    return len(next(iter(inputs.values())))


def _batch(pages: Sequence[Arrays], size: int) -> Arrays:
    """Pages of one text length: the first's text, its tokens rotated, under the images of all."""
    rows = []
    for at in range(size):
        row = {name: np.roll(values, at, axis=1) for name, values in pages[0].items()}
        if "pixel_values" in row:
            row["pixel_values"] = pages[at % len(pages)]["pixel_values"]
        rows.append(row)
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _drawn(rng: np.random.Generator, scores: np.ndarray) -> list[float | None]:
    """A threshold an exit, near the score ``[E, B]`` of one of the pages or never; clear of all of them."""
    drawn: list[float | None] = []
    for row in scores:
        near = float(rng.choice(row)) + float(rng.choice([-1, 1])) * _MARGIN
        clear = float(np.abs(row - near).min()) > _MARGIN / 10
        drawn.append(near if clear and rng.random() < 0.7 else None)
    return drawn


def _require_equal(left: np.ndarray, want: np.ndarray, what: str, exits: Sequence[str]) -> None:
    if (left != want).any():
        row = int(np.flatnonzero(left != want)[0])
        raise NotEqual(f"{what} differ: page {row} left at {exits[int(left[row])]}, expected {exits[int(want[row])]}")
