"""The three executors on a simulated driver (`simulator.py`): the same exits and logits, and nothing run that need not be."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ee_export.errors import BadRequest, DeviceError
from ee_export.policy.criteria import CRITERIA
from ee_export.policy.decide import Rule
from tests.gpu import bindings
from tests.gpu.simulator import Simulator
from tests.gpu.small_chain import CLASSES, EXITS, STRETCHES, VISUAL, expected, pages, segments_on

KINDS = ("host", "graphs", "conditional")
BATCHES, LENGTHS = (1, 2, 4, 8, 16, 32, 64), (5, 9)


@pytest.fixture(params=["cuda-12", "cuda-13"])
def simulator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulator]:
    """A driver; at the end nothing is left in it, and nothing touched memory that was not there."""
    try:
        made = Simulator(request.param)
    except bindings.Missing as error:
        pytest.skip(f"{request.param}: {error}")
    made.install(monkeypatch)
    yield made
    assert made.faults == []
    assert made.leaks() == []


def module(name: str) -> Any:
    """A module of ours as it was imported on this test's driver."""
    return importlib.import_module(f"ee_export.runtime.gpu.{name}")


def policy(thresholds: Any = (0.5, 0.5, 0.5, 0.5), criterion: str = "max_probability", seed: int = 1) -> Any:
    random = np.random.default_rng(seed)
    rules = tuple(
        Rule(
            tuple(random.uniform(0.5, 1.5, CLASSES)),
            tuple(random.normal(size=CLASSES)),
            tuple(random.normal(size=CLASSES + 7)),
            gate=(1.3, -0.2),
        )
        for _ in EXITS
    )
    return module("executors.batch").Policy(rules, criterion, tuple(thresholds))


@contextlib.contextmanager
def opened(
    simulator: Simulator,
    kind: str,
    *,
    batches: tuple[int, ...] = BATCHES,
    lengths: tuple[int, ...] = LENGTHS,
    stretches: Any = (),
    segments: Any = None,
    how: Any = None,
) -> Iterator[Any]:
    device = module("device").open_device()
    sizes = module("buffers").Sizes(batches, lengths, VISUAL)
    choose = module("executors.choose")
    try:
        with choose.open_executor(
            device, segments or segments_on(simulator), how or policy(), sizes, stretches=stretches, kind=kind
        ) as executor:
            yield executor
    finally:
        device.close()


def run(executor: Any, *arguments: Any) -> Any:
    return module("executors.batch").run(executor, *arguments)


def check(executor: Any, inputs: dict[str, np.ndarray], how: Any, tokens: np.ndarray | None = None) -> list[int]:
    """Compare with numpy and the CPU's policy; the exits."""
    rows = len(inputs["pixel_values"])
    executor.retune(how)
    left = run(executor, inputs, rows, tokens)
    known = np.zeros((len(EXITS), rows), np.int32) if tokens is None else tokens
    for page, (found, wanted) in enumerate(
        zip(left, expected(inputs, how.rules, how.criterion, how.thresholds, known), strict=True)
    ):
        where = f"{executor.kind}, page {page} of {rows}"
        assert found.exit == wanted.exit, where
        np.testing.assert_array_equal(found.logits, wanted.logits, where)
        np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-12, err_msg=where)
    return [one.exit for one in left]


@pytest.mark.parametrize("kind", KINDS)
def test_exits_logits_and_scores_are_those_of_the_cpu_at_random_thresholds_and_batches(
    simulator: Simulator, kind: str
) -> None:
    random = np.random.default_rng(3)
    seen: set[int] = set()
    with opened(simulator, kind) as executor:
        assert executor.kind == kind
        for trial in range(60):
            rows = int(random.choice([1, 1, 2, 3, 5, 8, 13, 31, 32, 64]))
            inputs = pages(rows, int(random.integers(1, 10)), trial)
            how = policy(random.uniform(0.2, 1.0, 4), str(random.choice(list(CRITERIA))), trial)
            tokens = random.integers(0, 300, (len(EXITS), rows)).astype(np.int32)
            seen |= set(check(executor, inputs, how, tokens))
    assert seen == {0, 1, 2, 3, 4}
