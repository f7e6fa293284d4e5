"""The three executors on a simulated driver (`simulator.py`): the same exits and logits, and nothing run that need not be."""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ee_export.errors import BadRequest, DeviceError
from ee_export.policy.criteria import CRITERIA
from ee_export.policy.decide import ExitRule
from tests.gpu.simulator import Simulator, driver_of
from tests.gpu.small_chain import CLASSES, EXITS, STRETCHES, VISUAL, expected, pages, segments_on

KINDS = ("host", "graphs", "conditional")
BATCHES, LENGTHS = (1, 2, 4, 8, 16, 32, 64), (5, 9)


@pytest.fixture(params=["cuda-13", pytest.param("cuda-12", marks=pytest.mark.exhaustive)])
def simulator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulator]:
    """A driver. At the end of a test it must hold no resources and have recorded no faults."""
    made = driver_of(request.param, monkeypatch)
    yield made
    assert made.faults == []
    assert made.leaks() == []


def module(name: str) -> Any:
    """A module of ours as it was imported on this test's driver."""
    return importlib.import_module(f"ee_export.runtime.gpu.{name}")


def policy(thresholds: Any = (0.5, 0.5, 0.5, 0.5), criterion: str = "max_probability", seed: int = 1) -> Any:
    random = np.random.default_rng(seed)
    rules = tuple(
        ExitRule(
            tuple(random.uniform(0.5, 1.5, CLASSES).tolist()),
            tuple(random.normal(size=CLASSES).tolist()),
            tuple(random.normal(size=CLASSES + 7).tolist()),
            gate=(1.3, -0.2),
        )
        for _ in EXITS
    )
    return module("executors.device_chain").ExitPolicy(rules, criterion, tuple(thresholds))


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
    sizes = module("sizes").Sizes(batches, lengths, VISUAL)
    choose = module("executors.choose")
    try:
        with choose.open_device_chain(
            device, segments or segments_on(simulator), how or policy(), sizes, stretches=stretches, kind=kind
        ) as executor:
            yield executor
    finally:
        device.close()


def run(executor: Any, *arguments: Any) -> Any:
    return module("executors.device_chain").run_chain(executor, *arguments)


def check(executor: Any, inputs: dict[str, np.ndarray], how: Any, tokens: np.ndarray | None = None) -> list[int]:
    """Compare with numpy and the CPU's policy. Returns the exits."""
    rows = len(inputs["pixel_values"])
    executor.retune(how)
    page_exits = run(executor, inputs, rows, tokens)
    known = np.zeros((len(EXITS), rows), np.int32) if tokens is None else tokens
    for page, (page_exit, expected_exit) in enumerate(
        zip(page_exits, expected(inputs, how.rules, how.criterion, how.thresholds, known), strict=True)
    ):
        where = f"{executor.kind}, page {page} of {rows}"
        assert page_exit.exit == expected_exit.exit, where
        np.testing.assert_array_equal(page_exit.logits, expected_exit.logits, where)
        np.testing.assert_allclose(page_exit.scores, expected_exit.scores, rtol=1e-12, err_msg=where)
    return [page_exit.exit for page_exit in page_exits]


@pytest.mark.parametrize("kind", KINDS)
def test_exits_logits_and_scores_are_those_of_the_cpu_at_random_thresholds(simulator: Simulator, kind: str) -> None:
    random = np.random.default_rng(3)
    reached: set[int] = set()
    with opened(simulator, kind) as executor:
        assert executor.kind == kind
        for trial in range(200):
            rows = int(random.choice([1, 1, 1, 1, 1, 1, 2, 3, 5, 8, 13, 32]))
            inputs = pages(rows, int(random.integers(1, 10)), trial)
            how = policy(random.uniform(0.2, 1.0, 4).tolist(), str(random.choice(list(CRITERIA))), trial)
            tokens = random.integers(0, 300, (len(EXITS), rows)).astype(np.int32) if trial % 2 else None
            reached |= set(check(executor, inputs, how, tokens))
    assert reached == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("kind", KINDS)
def test_every_batch_size_from_1_to_64_gives_the_results_of_its_single_pages(simulator: Simulator, kind: str) -> None:
    with opened(simulator, kind) as executor:
        for rows in range(1, 65):
            check(executor, pages(rows, 9, rows), policy((0.6, 0.7, 0.6, 0.5), seed=rows))


@pytest.mark.parametrize("kind", KINDS)
def test_every_subset_of_a_batch_can_exit_at_an_exit(simulator: Simulator, kind: str) -> None:
    with opened(simulator, kind, batches=(1, 2, 4, 8)) as executor:
        for rows in range(1, 9):
            inputs = pages(rows, 5, rows)
            for kept in range(0, 2**rows, 1 if rows < 6 else 7):
                stays = np.array([kept >> row & 1 for row in range(rows)], bool)
                inputs["pixel_values"][:, 0, :] = np.where(stays, 0.0, 100.0)[
                    :, None
                ]  # a page of 100s is certain at once
                exits = check(executor, inputs, policy((0.999, None, 0.9, None)))
                assert [exit > 0 for exit in exits] == stays.tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 7])
def test_pages_can_be_forced_to_any_exit_and_no_later_segment_runs(simulator: Simulator, kind: str, rows: int) -> None:
    with opened(simulator, kind) as executor:
        for index in range(len(EXITS)):
            simulator.ran.clear()
            how = policy([0.0 if exit == index else None for exit in range(4)])
            assert check(executor, pages(rows, 4, index), how) == [index] * rows
            assert [simulator.ran[exit] for exit in EXITS] == [1] * (index + 1) + [0] * (4 - index)


@pytest.mark.parametrize("kind", KINDS)
def test_a_segment_runs_at_the_smallest_batch_size_that_holds_the_remaining_pages(
    simulator: Simulator, kind: str
) -> None:
    segments = segments_on(simulator)
    inputs = pages(32, 5)
    inputs["pixel_values"][:3], inputs["pixel_values"][3:, 0] = 0.0, 100.0
    with opened(simulator, kind, segments=segments) as executor:
        ran: list[int] = []
        real = segments[1].compute

        def counted(given: Any) -> Any:
            ran.append(len(given["input_ids"]))
            return real(given)

        segments[1].compute = counted
        assert check(executor, inputs, policy((0.999, 0.0, None, None))) == [1] * 3 + [0] * 29
    assert ran == [4]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 6])
def test_logits_that_are_not_finite_fail_only_their_page(simulator: Simulator, kind: str, rows: int) -> None:
    for bad in (np.nan, np.inf, -np.inf):
        inputs = pages(rows, 5)
        inputs["pixel_values"][0, 0, 0] = bad
        with opened(simulator, kind) as executor:
            how = policy((None, None, None, 0.5))
            executor.retune(how)
            page_exits = run(executor, inputs, rows)
            assert (
                page_exits[0].exit == -1
                and np.isnan(page_exits[0].scores).all()
                and not np.isfinite(page_exits[0].logits).all()
            )
            if rows == 1:
                continue
            others = {name: values[1:] for name, values in inputs.items()}
            tokens = np.zeros((len(EXITS), rows - 1), np.int32)
            for page_exit, expected_exit in zip(
                page_exits[1:], expected(others, how.rules, how.criterion, how.thresholds, tokens), strict=True
            ):
                assert page_exit.exit == expected_exit.exit
                np.testing.assert_array_equal(page_exit.logits, expected_exit.logits)


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_read_only_for_pages_that_the_image_does_not_decide(simulator: Simulator, kind: str) -> None:
    how = policy((0.75, 0.5, 0.5, 0.5), seed=5)
    inputs = pages(13, 9, 5)
    with opened(simulator, kind, stretches=STRETCHES, how=how) as executor:
        exits = check(executor, inputs, how)
        simulator.ran.clear()
        executor.start(13)
        undecided = executor.advance({"pixel_values": inputs["pixel_values"]})
        assert sorted(undecided) == [page for page, exit in enumerate(exits) if exit > 0]
        assert 0 < len(undecided) < 13 and simulator.ran["text"] == 0
        texts = {name: values[undecided] for name, values in inputs.items() if name != "pixel_values"}
        assert executor.advance(texts) == []
        assert [left.exit for left in executor.results()] == exits
        executor.retune(policy((0.0, None, None, None)))
        executor.start(13)
        assert executor.advance({"pixel_values": inputs["pixel_values"]}) == []
        assert executor.advance({}) == []  # and nothing is needed for pages that are decided
        assert simulator.ran["text"] == 1


@pytest.mark.parametrize("rows", [1, 8])
def test_the_conditional_graph_is_one_launch_and_one_wait_at_every_exit(simulator: Simulator, rows: int) -> None:
    with opened(simulator, "conditional") as executor:
        traces = []
        for index in range(len(EXITS)):
            executor.retune(policy([0.0 if exit == index else None for exit in range(4)]))
            simulator.trace.clear()
            run(executor, pages(rows, 5), rows)
            traces.append([call for call in simulator.trace if not call.startswith("cuCtx")])
        assert all(trace == traces[0] for trace in traces)
        launch = traces[0].index("cuGraphLaunch")
        assert traces[0].count("cuGraphLaunch") == 1
        assert traces[0][launch:] == ["cuGraphLaunch", "cuMemcpyAsync", "cuEventRecord", "cuEventSynchronize"]
        assert not {"cuStreamSynchronize", "cuLaunchKernel"} & set(traces[0])


def test_the_host_chain_waits_once_a_segment(simulator: Simulator) -> None:
    with opened(simulator, "host") as executor:
        executor.retune(policy((None, None, None, None)))
        run(executor, pages(1, 5), 1)
        simulator.trace.clear()
        run(executor, pages(1, 5), 1)
        assert (
            simulator.trace.count("cuEventSynchronize") == len(EXITS) + 1
        )  # and one for the memory of the page before


@pytest.mark.parametrize("kind", KINDS)
def test_retuning_captures_and_compiles_nothing(simulator: Simulator, kind: str) -> None:
    with opened(simulator, kind) as executor:
        simulator.trace.clear()
        executor.retune(policy((0.1, 0.2, 0.3, 0.4), "entropy"))
        run(executor, pages(1, 5), 1)
        assert not [call for call in simulator.trace if "Capture" in call or "Instantiate" in call or "Alloc" in call]
        executor.retune(policy((0.1, 0.2, 0.3, 0.4), "margin"))
        if kind == "conditional":
            simulator.trace.clear()
            executor.retune(policy((0.5, 0.2, 0.3, 0.4), "margin"))
            assert [call for call in simulator.trace if "Memcpy" in call] == ["cuMemcpyAsync"]


def test_a_policy_of_other_exits_or_classes_is_refused(simulator: Simulator) -> None:
    for kind in KINDS:
        with opened(simulator, kind, batches=(1,)) as executor:
            with pytest.raises(BadRequest, match="4 exits"):
                executor.retune(
                    module("executors.device_chain").ExitPolicy(policy().rules[1:], "margin", (0.5, 0.5, 0.5))
                )
            with pytest.raises(BadRequest, match="3 classes"):
                rules = (ExitRule((1.0,) * 3, (0.0,) * 3), *policy().rules[1:])
                executor.retune(module("executors.device_chain").ExitPolicy(rules, "margin", (0.5,) * 4))


# Falling back.


def spoiled(simulator: Simulator, call: str) -> Any:
    """Segments of which one does work that a conditional body or a capture does not allow."""
    segments = segments_on(simulator)
    driver = simulator.driver
    does = {
        "a host function": lambda stream: driver.cuLaunchHostFunc(stream, 0, 0),
        "an event": lambda stream: driver.cuEventRecord(driver.cuEventCreate(0)[1], stream),
        "a wait": lambda stream: driver.cuStreamSynchronize(stream),
    }
    segments[3].spoil = does[call]
    return segments


def test_a_segment_with_a_host_function_falls_back_to_graphs_and_names_it(
    simulator: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(simulator, "conditional", segments=spoiled(simulator, "a host function")) as executor:
        assert executor.kind == "graphs"
        check(executor, pages(5, 5), policy())
    (warning,) = caplog.messages
    assert (
        "'conditional' cannot run here, 'graphs' does instead: encoder.2 at batch 1" in warning and "'host'" in warning
    )


def test_a_segment_that_waits_in_its_capture_falls_back_to_the_host_chain(
    simulator: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(simulator, "conditional", segments=spoiled(simulator, "a wait")) as executor:
        assert executor.kind == "host"
        check(executor, pages(5, 5), policy())
    assert len(caplog.messages) == 2 and all("encoder.2" in warning for warning in caplog.messages)


def test_a_segment_that_cannot_be_captured_falls_back_to_the_host_chain(simulator: Simulator) -> None:
    segments = segments_on(simulator)
    segments[2].capturable = False
    with opened(simulator, "conditional", segments=segments) as executor:
        assert executor.kind == "host"
        check(executor, pages(5, 5), policy())


def test_a_capture_that_records_nothing_falls_back(simulator: Simulator, caplog: pytest.LogCaptureFixture) -> None:
    segments = segments_on(simulator)
    real = segments[1].bind

    def bind(addresses: Any, sizes: Any) -> Any:
        bound = real(addresses, sizes)
        enqueue, calls = bound.enqueue, [0]

        def silent(stream: int) -> None:
            calls[0] += 1
            if calls[0] != 2:  # the capture
                enqueue(stream)

        bound.enqueue = silent
        return bound

    segments[1].bind = bind  # type: ignore[method-assign]
    with opened(simulator, "conditional", batches=(1,), lengths=(5,), segments=segments) as executor:
        assert executor.kind == "graphs"
        check(executor, pages(1, 5), policy())
    assert "recorded no work" in caplog.text


def test_an_old_driver_has_no_conditional_graph(simulator: Simulator, caplog: pytest.LogCaptureFixture) -> None:
    simulator.driver_version = 12060
    with opened(simulator, "conditional") as executor:
        assert executor.kind == "graphs"
    assert "the driver is of CUDA 12.6" in caplog.text and "r570" in caplog.text


CALLS = [
    ("cuModuleLoadData", "graphs"),
    ("cuModuleGetFunction", "graphs"),
    ("cuGraphCreate", "graphs"),
    ("cuGraphAddChildGraphNode", "graphs"),
    ("cuGraphAddNode", "graphs"),
    ("cuGraphConditionalHandleCreate", "graphs"),
    ("cuGraphGetNodes", "host"),
    ("cuGraphNodeGetType", "host"),
    ("cuStreamBeginCapture", "host"),
    ("cuStreamEndCapture", "host"),
    ("cuGraphInstantiate", "host"),
]


REPEATED = {call for call, _ in CALLS} - {"cuModuleLoadData"}


@pytest.mark.parametrize(
    ("call", "kind", "index"),
    [(*call, index) for call in CALLS for index in (1, 2) if call[0] in REPEATED or index == 1],
)
def test_a_refusal_of_the_driver_falls_back_and_leaks_nothing(
    simulator: Simulator, caplog: pytest.LogCaptureFixture, call: str, kind: str, index: int
) -> None:
    simulator.fail(call, "CUDA_ERROR_NOT_SUPPORTED", index)
    with opened(simulator, "conditional", batches=(1, 4)) as executor:
        assert executor.kind == kind
        check(executor, pages(3, 5), policy())
    assert call in caplog.text


def test_a_graph_that_cannot_be_uploaded_is_launched_all_the_same(
    simulator: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    simulator.fail("cuGraphUpload", "CUDA_ERROR_NOT_SUPPORTED", 1)
    with opened(simulator, "conditional", batches=(1, 4)) as executor:
        assert executor.kind == "conditional" and not caplog.messages
        check(executor, pages(3, 5), policy())


def test_the_same_fallback_is_logged_once(simulator: Simulator, caplog: pytest.LogCaptureFixture) -> None:
    simulator.driver_version = 12060
    for _ in range(3):
        with opened(simulator, "conditional", batches=(1,)):
            pass
    assert len(caplog.messages) == 1


def test_auto_measures_the_executors_and_uses_the_fastest(
    simulator: Simulator, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    choose = module("executors.choose")
    monkeypatch.setattr(choose, "_RUNS", 2)
    with opened(simulator, "auto", batches=(1,)) as executor:
        assert all(f"{kind} " in caplog.messages[-1] for kind in KINDS)
        check(executor, pages(1, 5), policy())
    for fastest in KINDS:
        monkeypatch.setattr(choose, "measure_ms", lambda executor, rows, fast=fastest: float(executor.kind != fast))
        with opened(simulator, "auto", batches=(1,)) as executor:
            assert executor.kind == fastest
            assert executor.policy == policy()
            check(executor, pages(1, 5), policy())


# Failing.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", ["cuMemAlloc", "cuMemHostAlloc", "cuStreamCreate", "cuEventCreate"])
def test_a_failed_executor_leaks_nothing(simulator: Simulator, kind: str, call: str) -> None:
    for index in (1, 2, 3, 7):
        simulator.fail(call, "CUDA_ERROR_UNKNOWN", index)
        with contextlib.suppress(DeviceError), opened(simulator, kind, batches=(1, 4)):
            pass
        assert simulator.leaks() == []


def test_too_little_memory_is_reported_with_the_requested_and_the_free_size(simulator: Simulator) -> None:
    simulator.total = 8 << 20
    with (
        pytest.raises(DeviceError, match=r"Simulated GPU: \d+ MiB of memory requested and \d MiB free; use smaller"),
        opened(simulator, "conditional", batches=(1, 1024), lengths=(2048,)),
    ):
        pass


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "call", ["cuGraphLaunch", "cuLaunchKernel", "cuMemcpyAsync", "cuEventSynchronize", "cuEventRecord"]
)
def test_a_failure_of_a_run_raises_and_frees_everything(simulator: Simulator, kind: str, call: str) -> None:
    used = {"cuGraphLaunch": kind != "host", "cuLaunchKernel": kind == "host"}.get(call, True)
    with opened(simulator, kind, batches=(1, 4)) as executor:
        simulator.fail(call, "CUDA_ERROR_LAUNCH_FAILED")
        if used:
            with pytest.raises(DeviceError, match="CUDA_ERROR_LAUNCH_FAILED" if call == "cuLaunchKernel" else call):
                run(executor, pages(3, 5), 3)


@pytest.mark.parametrize("kind", KINDS)
def test_closing_twice_does_nothing_more(simulator: Simulator, kind: str) -> None:
    with opened(simulator, kind, batches=(1,)) as executor:
        executor.close()
        executor.buffers.close()


# Inputs.


@pytest.mark.parametrize("kind", KINDS)
def test_unsuitable_inputs_are_refused_with_the_expected_ones(simulator: Simulator, kind: str) -> None:
    with opened(simulator, kind, batches=(1, 4)) as executor:
        good = pages(2, 5)
        cases = [
            ({"pixels": good["pixel_values"]}, "unknown input 'pixels': this chain takes pixel_values"),
            ({"pixel_values": good["pixel_values"][:1]}, r"shape \(1, 3, 4\); expected \(2, 3, 4\)"),
            ({"pixel_values": good["pixel_values"].astype(np.float64)}, "dtype float64; expected float32"),
            ({"input_ids": np.zeros((2, 10), np.int64)}, "10 text tokens: this chain was opened for 9 at most"),
        ]
        for change, message in cases:
            executor.start(2)
            with pytest.raises(BadRequest, match=message):
                executor.advance({**good, **change})
        executor.start(2)
        with pytest.raises(BadRequest, match="pixel_values: missing, and vision reads it"):
            executor.advance({name: values for name, values in good.items() if name != "pixel_values"})
        for rows, message in ((0, "no pages"), (5, "5 pages: this chain was opened for 4")):
            with pytest.raises(BadRequest, match=message):
                executor.start(rows)
        check(executor, good, policy())  # and it still works


class OnDevice:
    """Another library's array, in the simulator's device memory."""

    def __init__(self, simulator: Simulator, values: np.ndarray, stream: int | None = None) -> None:
        self.address = int(simulator.driver.cuMemAlloc(values.nbytes)[1])
        simulator.array(self.address, values.shape, str(values.dtype))[...] = values
        self.__cuda_array_interface__ = {
            "shape": values.shape,
            "typestr": values.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "version": 3,
            "stream": stream,
        }


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_on_the_device_are_copied_after_the_work_that_fills_them(simulator: Simulator, kind: str) -> None:
    inputs, how = pages(4, 5), policy()
    with opened(simulator, kind, batches=(4,), how=how) as executor, executor.buffers.device.current():
        other = int(simulator.driver.cuStreamCreate(1)[1])
        late = OnDevice(simulator, np.zeros_like(inputs["pixel_values"]), other)
        target = simulator.array(late.address, (4, 3, 4), "float32")
        fill = simulator.function("fill", lambda: target.__setitem__(..., inputs["pixel_values"]))
        simulator.driver.cuLaunchKernel(fill, 1, 1, 1, 1, 1, 1, 0, other, 0, [])
        given = {
            **{name: OnDevice(simulator, values) for name, values in inputs.items() if values.dtype == np.int64},
            "pixel_values": late,
        }
        page_exits = run(executor, given, 4)
        expected_exits = expected(inputs, how.rules, how.criterion, how.thresholds, np.zeros((5, 4), np.int32))
        for page_exit, expected_exit in zip(page_exits, expected_exits, strict=True):
            assert page_exit.exit == expected_exit.exit
            np.testing.assert_array_equal(page_exit.logits, expected_exit.logits)
        short = OnDevice(simulator, np.zeros((4, 3), np.int64))
        executor.start(4)
        with pytest.raises(BadRequest, match="a device array is not padded"):
            executor.advance({**given, "input_ids": short})
        for held in (*given.values(), short):
            simulator.driver.cuMemFree(held.address)
        simulator.driver.cuStreamDestroy(other)


@pytest.mark.parametrize("kind", KINDS)
def test_an_input_written_in_place_is_not_copied(simulator: Simulator, kind: str) -> None:
    inputs, how = pages(4, 5), policy()
    with opened(simulator, kind, batches=(4,), how=how) as executor:
        views = {name: executor.buffers.view(name, 4, 5) for name in inputs}
        for name, view in views.items():
            simulator.array(view.address, view.shape, view.dtype)[...] = inputs[name]
        simulator.trace.clear()
        with executor.buffers.device.current():
            executor.buffers.give({n: _interface(view) for n, view in views.items()}, 4, 5)
        assert "cuMemcpyAsync" not in simulator.trace


def test_an_array_that_its_owner_releases_is_kept_until_it_is_copied(simulator: Simulator) -> None:
    """The allocators of torch and CuPy give the memory of a released array to the next one at once, in another stream."""

    class Pooled(OnDevice):
        def __init__(self, values: np.ndarray) -> None:
            super().__init__(simulator, values)
            self.memory = simulator.array(self.address, values.shape, str(values.dtype))

        def __del__(self) -> None:
            self.memory[...] = 1

    inputs, how = pages(4, 5), policy()
    expected_exits = expected(inputs, how.rules, how.criterion, how.thresholds, np.zeros((5, 4), np.int32))
    with opened(simulator, "conditional", batches=(4,), how=how) as executor, executor.buffers.device.current():
        addresses = []
        for _ in range(2):
            given = {name: Pooled(values) for name, values in inputs.items()}
            addresses += [held.address for held in given.values()]
            executor.start(4)
            executor.enqueue(given)
            del given
            gc.collect()
        answers = executor.results_on_device()["answers"]
        executor.buffers.device.synchronize(executor.buffers.stream)
        logits = simulator.array(answers.address, answers.shape, "float32")
        for page, expected_exit in enumerate(expected_exits):
            np.testing.assert_array_equal(logits[: expected_exit.exit + 1, page], expected_exit.logits)
        executor.buffers._copied.clear()
        for address in addresses:
            simulator.driver.cuMemFree(address)


def _interface(view: Any) -> Any:
    """An array with `__cuda_array_interface__` only."""
    return type("Other", (), {"__cuda_array_interface__": view.__cuda_array_interface__, "shape": view.shape})()


@pytest.mark.parametrize("kind", KINDS)
def test_results_on_the_device_are_those_on_the_host(simulator: Simulator, kind: str) -> None:
    with opened(simulator, kind, batches=(1, 4)) as executor:
        left = run(executor, pages(3, 5), 3)
        arrays = executor.results_on_device()
        with executor.buffers.device.current():
            executor.buffers.device.synchronize(executor.buffers.stream)
        exits, scores, answers = (
            simulator.array(arrays[name].address, arrays[name].shape, arrays[name].dtype)
            for name in ("exits", "scores", "answers")
        )
        assert exits.tolist() == [page_exit.exit for page_exit in left]
        for page, page_exit in enumerate(left):
            np.testing.assert_array_equal(answers[: page_exit.exit + 1, page], page_exit.logits)
            np.testing.assert_array_equal(scores[: page_exit.exit + 1, page], page_exit.scores)


def test_a_chain_runs_in_a_stream_of_the_user(simulator: Simulator) -> None:
    device = module("device").open_device()
    with device.current():
        stream = device.create_stream()
    sizes = module("sizes").Sizes((1, 4), LENGTHS, VISUAL)
    with module("executors.choose").open_device_chain(
        device, segments_on(simulator), policy(), sizes, kind="conditional", stream=stream
    ) as executor:
        assert executor.buffers.stream == stream
        check(executor, pages(3, 5), policy())
    with device.current():
        device.destroy_stream(stream)
    device.close()


def test_captures_never_nest_and_their_graphs_are_destroyed_once_embedded(simulator: Simulator) -> None:
    with opened(simulator, "conditional", batches=(1, 4)):
        open_captures = 0
        for call in simulator.trace:
            open_captures += {"cuStreamBeginCapture": 1, "cuStreamEndCapture": -1}.get(call, 0)
            assert open_captures in (0, 1)
        assert simulator.trace.count("cuGraphDestroy") == simulator.trace.count("cuStreamBeginCapture") + 4


def test_a_segment_of_the_host_that_is_garbage_while_another_runs_gives_its_memory_back(simulator: Simulator) -> None:
    """The collector may come in any line, with the lock of their chain held by this very thread."""
    device, lock = module("device").open_device(), threading.Lock()
    with device.current():
        stream = device.create_stream()
    segment = segments_on(simulator)[0]
    held = module("host").HostSegment(segment, device, stream, VISUAL, lock)
    held.run({"pixel_values": pages(2, 5)["pixel_values"]})
    with lock:
        waiting = threading.Thread(target=held.__del__, daemon=True)
        waiting.start()
        waiting.join(5)
        assert not waiting.is_alive()
    assert simulator.leaks()[:-1] == [f"stream {stream:#x}"]
    with device.current():
        device.destroy_stream(stream)
    device.close()
