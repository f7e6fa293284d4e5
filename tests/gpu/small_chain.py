"""A small chain for the executors' tests: five segments like those of a document model, and their computation in
numpy.

The values of a row do not depend, to the last bit, on the rows beside it or on masked padding. So every executor,
batch size and length must give the same logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ee_export.package.manifest import TensorSpec
from ee_export.policy.criteria import CRITERIA, argmax
from ee_export.policy.decide import NEVER, ExitRule, evaluate_exits, limits
from tests.gpu.simulator import Simulator

CLASSES, WIDTH, VISUAL = 4, 6, 3
EXITS = ("vision", "text", "encoder.1", "encoder.2", "final")
Arrays = dict[str, np.ndarray]
Compute = Callable[[Mapping[str, np.ndarray]], Arrays]


def spec(name: str, dtype: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, dtype, ("B", *shape))


PIXELS = spec("pixel_values", "float32", 3, 4)
IDS, BOXES, MASK = spec("input_ids", "int64", "T"), spec("bbox", "int64", "T", 4), spec("attention_mask", "int64", "T")
SEEN, READ = spec("visual", "float32", VISUAL, WIDTH), spec("text", "float32", "T", WIDTH)
HIDDEN = [spec(f"hidden.{index}", "float32", "L", WIDTH) for index in range(3)]
BIAS = spec("bias", "float16", 1, "L", "L")

_random = np.random.default_rng(7)
WEIGHTS = _random.normal(size=(8, WIDTH, CLASSES)).astype(np.float32)
TABLE = _random.normal(size=(16, WIDTH)).astype(np.float32)


def logits_of(features: np.ndarray, which: int) -> np.ndarray:
    """``[B, H]`` to raw logits ``[B, C]``, each row for itself."""
    return (features[:, :, None] * WEIGHTS[which]).sum(axis=1, dtype=np.float32) * np.float32(3)


def masked_mean(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean over the positions that a mask shows, one after another so that padding changes no rounding."""
    total, count = np.zeros((len(hidden), hidden.shape[2]), np.float32), np.zeros((len(hidden), 1), np.float32)
    for index in range(hidden.shape[1]):
        shown = mask[:, index : index + 1].astype(np.float32)
        total += np.where(shown > 0, hidden[:, index], np.float32(0))
        count += shown
    return total / np.maximum(count, 1)


def see(given: Mapping[str, np.ndarray]) -> Arrays:
    pixels = given["pixel_values"].reshape(len(given["pixel_values"]), -1)
    visual = np.stack([np.roll(pixels, index, axis=1)[:, :WIDTH] for index in range(VISUAL)], axis=1)
    return {"vision.logits": logits_of(visual[:, 0], 0), "visual": visual}


def read(given: Mapping[str, np.ndarray]) -> Arrays:
    ids = given["input_ids"]
    assert ids.min(initial=0) >= 0 and ids.max(initial=0) < 16, "an index out of range reads anything on a GPU"
    text = TABLE[ids] + given["bbox"].sum(axis=2, dtype=np.float32)[:, :, None] / np.float32(4096)
    return {"text.logits": logits_of(masked_mean(text, given["attention_mask"]), 1), "text": text}


def fuse(given: Mapping[str, np.ndarray]) -> Arrays:
    hidden = np.concatenate([given["text"], given["visual"]], axis=1)
    shown = np.concatenate([given["attention_mask"], np.ones((len(hidden), VISUAL), np.int64)], axis=1)
    bias = np.where(shown[:, None, None, :] > 0, np.float16(0), np.float16(-1000))
    bias = np.broadcast_to(bias, (len(hidden), 1, hidden.shape[1], hidden.shape[1])).astype(np.float16)
    return {"encoder.1.logits": logits_of(masked_mean(hidden, shown), 2), "hidden.0": hidden, "bias": bias}


def layer(number: int) -> Compute:
    def run(given: Mapping[str, np.ndarray]) -> Arrays:
        hidden, shown = given[f"hidden.{number}"], given["bias"][:, 0, 0] == 0
        hidden = np.tanh(hidden * np.float32(1.25) + masked_mean(hidden, shown)[:, None])
        mean = masked_mean(hidden, shown)
        outputs = {f"encoder.{number + 2}.logits": logits_of(mean, 3 + number), f"hidden.{number + 1}": hidden}
        return outputs | {f"encoder.{number + 2}.gate": logits_of(mean, 6)[:, :1]}

    return run


def answer(given: Mapping[str, np.ndarray]) -> Arrays:
    return {"final.logits": logits_of(masked_mean(given["hidden.1"], given["bias"][:, 0, 0] == 0), 5)}


def logits(exit: str) -> TensorSpec:
    return spec(f"{exit}.logits", "float32", CLASSES)


PARTS: list[tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], Compute]] = [
    ((PIXELS,), (logits("vision"), SEEN), see),
    ((IDS, BOXES, MASK), (logits("text"), READ), read),
    ((SEEN, READ, MASK), (logits("encoder.1"), HIDDEN[0], BIAS), fuse),
    ((HIDDEN[0], BIAS), (logits("encoder.2"), spec("encoder.2.gate", "float32", 1), HIDDEN[1]), layer(0)),
    ((HIDDEN[1], BIAS), (logits("final"),), answer),
]
STRETCHES = ((0, 1), (1, 5))


@dataclass
class Bound:
    capturable: bool
    enqueue: Callable[[int], None]


@dataclass
class SimulatedSegment:
    """A segment with a numpy kernel on the simulator. ``spoil`` is called with the stream at each enqueue, for tests
    that break it."""

    simulator: Simulator
    exit: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    compute: Compute
    spoil: Callable[[int], None] | None = None
    capturable: bool = True
    sizes: list[dict[str, int]] = field(default_factory=list)

    def bind(self, addresses: Mapping[str, int], sizes: Mapping[str, int]) -> Bound:
        self.sizes.append(dict(sizes))

        def view(spec: TensorSpec) -> np.ndarray:
            shape = tuple(axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape)
            return self.simulator.array(addresses[spec.name], shape, spec.dtype)

        def kernel() -> None:
            with np.errstate(all="ignore"):  # unused rows hold anything
                made = self.compute({spec.name: view(spec) for spec in self.inputs})
            for spec in self.outputs:
                view(spec)[...] = made[spec.name]

        function = self.simulator.function(self.exit, kernel)

        def enqueue(stream: int) -> None:
            (status,) = self.simulator.driver.cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, stream, 0, [])
            if status != self.simulator.driver.CUresult.CUDA_SUCCESS:
                from ee_export.errors import DeviceError

                raise DeviceError(f"{self.exit}: {status.name}")
            if self.spoil is not None:
                self.spoil(stream)

        return Bound(self.capturable, enqueue)


def segments_on(simulator: Simulator) -> list[SimulatedSegment]:
    return [SimulatedSegment(simulator, exit, *part) for exit, part in zip(EXITS, PARTS, strict=True)]


def pages(count: int, tokens: int, seed: int = 0) -> Arrays:
    """Inputs of some pages with texts of 1 to ``tokens`` tokens. The last page has all tokens."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, tokens + 1, count)
    lengths[-1] = tokens
    mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
    return {
        "pixel_values": random.normal(size=(count, 3, 4)).astype(np.float32),
        "input_ids": random.integers(0, 16, (count, tokens)) * mask,
        "bbox": random.integers(0, 1000, (count, tokens, 4)) * mask[:, :, None],
        "attention_mask": mask,
    }


@dataclass(frozen=True)
class Expected:
    exit: int
    scores: list[float]
    logits: np.ndarray  # [visited, C]


def every_exit(inputs: Arrays) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    """Raw logits of every exit, and gates, with no page leaving: numpy alone, no executor."""
    state: dict[str, Any] = dict(inputs)
    for _, _, compute in PARTS:
        state |= compute(state)
    return [state[f"{exit}.logits"] for exit in EXITS], [state.get(f"{exit}.gate") for exit in EXITS]


def expected(
    inputs: Arrays, rules: Sequence[ExitRule], criterion: str, thresholds: Sequence[Any], tokens: np.ndarray
) -> list[Expected]:
    """Exits, scores and logits of the pages by the policy of the CPU's chain."""
    logits, gates = every_exit(inputs)
    limits_of_exits = [limits(threshold, CLASSES) for threshold in (*thresholds, -NEVER)]
    count = len(inputs["pixel_values"])
    scores: list[list[float]] = [[] for _ in range(count)]
    exits = [-1] * count
    for position, page, known, score in evaluate_exits(logits, rules, list(tokens), gates, CRITERIA[criterion].score):
        if exits[page] < 0:
            scores[page].append(score)
            if scores[page][-1] >= limits_of_exits[position][argmax(known.probabilities[-1])]:
                exits[page] = position
    return [
        Expected(exits[page], scores[page], np.stack([logits[position][page] for position in range(exits[page] + 1)]))
        for page in range(count)
    ]
