"""`open_session` on the CPU: batches of encoded pages get the answers of the chain, by the names that a GPU's session has."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import ee_export
from ee_export.data.dataset import read_dataset
from ee_export.errors import BadRequest
from ee_export.package.store import Package
from ee_export.runtime.load import load_package
from ee_export.runtime.open_session import stream_handle


@pytest.fixture(scope="module")
def inputs(tiny_package: Package, pages_folder: Path) -> Mapping[str, np.ndarray]:
    data = read_dataset(pages_folder, tiny_package.manifest.labels)
    return load_package(tiny_package).encode([data.page(index) for index in range(0, len(data), 5)])


@pytest.mark.parametrize("point", ["default", "full"])
def test_a_batch_gets_the_answers_of_the_chain(
    tiny_package: Package, inputs: Mapping[str, np.ndarray], point: str
) -> None:
    chain = load_package(tiny_package, operating_point=point)
    with ee_export.open_session(tiny_package.path, operating_point=point) as session:
        results = session.run(inputs)
        answers = session.answers()
        for row, answer in enumerate(answers):
            alone = chain.predict_encoded({name: values[row : row + 1] for name, values in inputs.items()})
            assert (answer.label, answer.exit) == (alone.label, alone.exit)
            assert answer.score == pytest.approx(alone.score, abs=1e-5)
            assert answer.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
            exit = results.exits[row]
            assert session.exits[exit] == answer.exit
            assert results.scores[exit, row] == answer.score
    assert (results.exits.dtype, results.scores.dtype, results.logits.dtype) == (np.int32, np.float64, np.float32)
    assert results.logits.shape == (len(session.exits), len(answers), len(session.labels))
    assert np.from_dlpack(results.exits).tolist() == results.exits.tolist()


def test_another_operating_point_needs_no_other_session(
    tiny_package: Package, inputs: Mapping[str, np.ndarray]
) -> None:
    with ee_export.open_session(tiny_package) as session:
        session.retune("full")
        session.run(inputs)
        assert {answer.exit for answer in session.answers()} == {"final"}
        with pytest.raises(BadRequest, match="unknown operating point 'fast'"):
            session.retune("fast")


def test_a_page_with_logits_that_are_not_finite_has_no_answer(
    tiny_package: Package, inputs: Mapping[str, np.ndarray]
) -> None:
    pixels = np.array(inputs["pixel_values"])
    pixels[1] = np.nan
    with ee_export.open_session(tiny_package) as session:
        with pytest.raises(BadRequest, match="nothing was run"):
            session.answers()
        results = session.run({**inputs, "pixel_values": pixels})
        assert results.exits[1] < 0 and (np.delete(results.exits, 1) >= 0).all()
        with pytest.raises(ee_export.BadLogits, match="not finite"):
            session.answers()


def test_a_stream_or_a_gpu_of_a_target_on_the_processor_is_refused(tiny_package: Package) -> None:
    for stream, device, problem in (
        (5, 0, "stream 5: cpu-fp32 runs on the"),
        (None, 1, "device 1: cpu-fp32 runs on the"),
    ):
        with (
            pytest.raises(BadRequest, match=problem),
            ee_export.open_session(tiny_package, stream=stream, device=device),
        ):
            pass


def test_inputs_that_do_not_fit_are_refused_by_name(tiny_package: Package, inputs: Mapping[str, np.ndarray]) -> None:
    with ee_export.open_session(tiny_package) as session:
        with pytest.raises(BadRequest, match="input 'bbox': missing"):
            session.run({name: values for name, values in inputs.items() if name != "bbox"})
        with pytest.raises(BadRequest, match=r"input '\w+': .*give all inputs of the same pages"):
            session.run({**inputs, "pixel_values": inputs["pixel_values"][:1]})


def test_streams_of_other_libraries_give_their_numbers() -> None:
    torch_stream = type("Stream", (), {"cuda_stream": 96})()
    cupy_stream = type("Stream", (), {"ptr": 112})()
    protocol = type("Stream", (), {"__cuda_stream__": lambda self: (0, 128)})()
    assert [stream_handle(stream) for stream in (80, torch_stream, cupy_stream, protocol)] == [80, 96, 112, 128]
    for stream, problem in ((0, "cannot be captured"), (True, "expected a number or a stream"), ("s", "found 's'")):
        with pytest.raises(BadRequest, match=problem):
            stream_handle(stream)
