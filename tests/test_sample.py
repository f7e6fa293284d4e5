"""The shipped sample has the properties that the README states, on real pages if they are available."""

from pathlib import Path

import ee_export
from ee_export.data.dataset import read_dataset
from ee_export.package.store import open_package
from ee_export.verify.replay import verify_package


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_sample_is_small(sample: Path) -> None:
    assert size(sample) <= 20e6
    assert size(sample.parent / "documents.checkpoint") <= 10e6


def test_the_sample_verifies_on_this_machine(sample: Path) -> None:
    package = open_package(sample)
    result = verify_package(package, "cpu-fp32")
    assert set(result.operating_points) == {"full", "default"}
    proof = package.target("cpu-fp32").operating_points["default"].certificate
    assert proof is not None
    assert proof.bound <= proof.epsilon == 0.03
    assert max(result.differences.values()) <= 2e-4
    assert max(package.target("cpu-fp32").equality.values()) <= 2e-4


def test_the_pages_that_calibrate_tune_and_certify_are_apart_and_recorded(sample: Path, real_pages: Path) -> None:
    package = open_package(sample)
    split, val = package.manifest.split, read_dataset(real_pages / "val", package.manifest.labels)
    assert split is not None
    assert split.data == val.digest()
    assert set(split.pages) == {"calibrate", "tune", "certify"}
    assert sum(split.pages.values()) == len(val)


def test_the_sample_on_real_test_pages(sample: Path, real_pages: Path) -> None:
    chain = ee_export.load(sample)
    test = read_dataset(real_pages / "test", chain.labels)
    pages = [test.page(index) for index in range(len(test))]
    labels = [test.labels[target] for target in test.targets]
    full = chain.at("full").predict_batch(pages)
    early = chain.predict_batch(pages)
    full_right = sum(answer.label == label for answer, label in zip(full, labels, strict=True))
    right = sum(answer.label == label for answer, label in zip(early, labels, strict=True))
    before_text = sum(answer.exit == "vision" for answer in early)
    assert full_right / len(pages) >= 0.98
    assert right >= full_right
    assert before_text / len(pages) >= 0.75
