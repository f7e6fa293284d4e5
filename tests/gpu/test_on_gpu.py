"""The three executors on a real GPU, with segments that are NVRTC kernels (`benchmarks/gpu_segments.py`). Skipped
without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu_segments import CLASSES, kernel_chain
from ee_export.errors import DeviceError
from ee_export.policy.criteria import CRITERIA
from ee_export.policy.decide import ExitRule
from ee_export.runtime.gpu.device import open_device, preflight
from ee_export.runtime.gpu.executors.choose import KINDS, open_device_chain
from ee_export.runtime.gpu.executors.device_chain import DeviceChain, ExitPolicy, run_chain
from ee_export.runtime.gpu.sizes import Sizes

SEGMENTS, WIDTH = 5, 64


@pytest.fixture(scope="module")
def device() -> Iterator[Any]:
    try:
        gpu = open_device()
    except DeviceError as error:
        pytest.skip(f"no GPU to run on: {error}")
    assert gpu.name != "Simulated GPU"
    why = preflight(gpu)[-1].why
    if why:
        gpu.close()
        pytest.skip(f"no conditional graph on {gpu.name}: {why}")
    yield gpu
    gpu.close()


@pytest.fixture(scope="module")
def executors(device: Any) -> Iterator[list[DeviceChain]]:
    """Executors of every kind over the same segments. A fallback fails the test."""
    with device.current():
        segments = kernel_chain(device, SEGMENTS, WIDTH)
    sizes = Sizes((1, 2, 4, 8, 16, 32, 64))
    first, second, third = (open_device_chain(device, segments, some_policy(0), sizes, kind=kind) for kind in KINDS)
    with first as conditional, second as graphs, third as host:
        chains = [conditional, graphs, host]
        assert [chain.kind for chain in chains] == list(KINDS)
        yield chains


def some_policy(seed: int, criterion: str = "max_probability") -> ExitPolicy:
    random = np.random.default_rng(seed)
    rules = tuple(
        ExitRule(
            tuple(random.uniform(0.2, 0.6, CLASSES).tolist()),
            tuple(random.normal(size=CLASSES).tolist()),
            tuple(random.normal(size=CLASSES + 7).tolist()),
        )
        for _ in range(SEGMENTS)
    )
    return ExitPolicy(rules, criterion, tuple(random.uniform(0.2, 1.0, SEGMENTS - 1).tolist()))


def pages(rows: int, seed: int) -> dict[str, np.ndarray]:
    return {"state.0": np.random.default_rng(seed).normal(size=(rows, WIDTH)).astype(np.float32)}


def require_equal(executors: list[DeviceChain], inputs: dict[str, np.ndarray], policy: ExitPolicy) -> list[int]:
    rows = len(inputs["state.0"])
    exits_by_executor = []
    for executor in executors:
        executor.retune(policy)
        exits_by_executor.append(run_chain(executor, inputs, rows))
    for page_exits in exits_by_executor[:-1]:
        for page, (page_exit, host_exit) in enumerate(zip(page_exits, exits_by_executor[-1], strict=True)):
            assert page_exit.exit == host_exit.exit, f"page {page} of {rows}"
            np.testing.assert_array_equal(page_exit.logits, host_exit.logits)
            # CUDA's exp and log differ from libm's in the last digit of a probability, and a small margin is a
            # difference of two
            np.testing.assert_allclose(page_exit.scores, host_exit.scores, rtol=1e-12, atol=1e-14)
    return [page_exit.exit for page_exit in exits_by_executor[-1] if page_exit.exit is not None]


def test_executors_agree_at_thousands_of_random_thresholds(executors: list[DeviceChain]) -> None:
    random = np.random.default_rng(1)
    reached: set[int] = set()
    for trial in range(2000):
        rows = int(random.choice([1, 1, 1, 2, 3, 7, 16, 33, 64]))
        reached |= set(
            require_equal(executors, pages(rows, trial), some_policy(trial, str(random.choice(sorted(CRITERIA)))))
        )
    assert reached == set(range(SEGMENTS))


def test_executors_agree_in_every_batch_size(executors: list[DeviceChain]) -> None:
    for rows in range(1, 65):
        require_equal(executors, pages(rows, rows), some_policy(rows))


@pytest.mark.parametrize("rows", [1, 9])
def test_pages_can_be_forced_to_any_exit(executors: list[DeviceChain], rows: int) -> None:
    for index in range(SEGMENTS):
        thresholds = tuple(0.0 if exit == index else None for exit in range(SEGMENTS - 1))
        assert (
            require_equal(executors, pages(rows, index), replace(some_policy(index), thresholds=thresholds))
            == [index] * rows
        )


@pytest.mark.parametrize("rows", [1, 9])
def test_logits_that_are_not_finite_fail_only_their_page(executors: list[DeviceChain], rows: int) -> None:
    inputs = pages(rows, 3)
    inputs["state.0"][rows // 2, 5] = np.nan
    policy = replace(some_policy(3), thresholds=(None,) * (SEGMENTS - 1))
    for executor in executors:
        executor.retune(policy)
        exits = [left.exit for left in run_chain(executor, inputs, rows)]
        assert exits == [-1 if page == rows // 2 else SEGMENTS - 1 for page in range(rows)]


def test_torch_exchanges_inputs_and_results_without_a_copy_to_the_host(executors: list[DeviceChain]) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA here")
    inputs = pages(8, 4)
    for executor in executors:
        executor.retune(some_policy(4))
        left = run_chain(executor, {"state.0": torch.tensor(inputs["state.0"], device="cuda")}, 8)
        exits = torch.from_dlpack(executor.results_on_device()["exits"])
        assert exits.is_cuda and exits.tolist() == [page_exit.exit for page_exit in left]
        view = torch.as_tensor(executor.buffers.view("state.0", 8), device="cuda")
        assert view.data_ptr() == executor.buffers.addresses["state.0"]
