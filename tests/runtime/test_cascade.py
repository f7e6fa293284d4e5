"""A cascade of two models that read a page differently: the second one's inputs are made only for pages that need them."""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ee_export
from ee_export.builder.costs import measure
from ee_export.builder.predictions import observe
from ee_export.data import golden_page
from ee_export.data.encode import Arrays, Encoder
from ee_export.data.inputs import encode_pages
from ee_export.data.page import Page
from ee_export.data.tokenizer import read_tokenizer
from ee_export.errors import BadPackage, BadPage, EeError, NotEqual
from ee_export.package.check_manifest import check
from ee_export.package.encoding import Encoding
from ee_export.package.manifest import OperatingPoint, TensorSpec
from ee_export.package.store import Package
from ee_export.package.strict_json import Refused
from ee_export.package.write import seal
from ee_export.runtime.chain import Chain
from ee_export.verify.replay import verify_package
from tests import handmade
from tests.handmade import PIXELS, made

SMALL = replace(handmade.IMAGE, max_text_tokens=12)
LARGE = Encoding(
    image_size=16,
    image_mode="L",
    image_mean=(0.3, 0.3, 0.3),
    image_std=(0.2, 0.2, 0.2),
    max_text_tokens=40,
    bos_id=3,
    eos_id=4,
    pad_id=0,
)
IDS = TensorSpec("input_ids", "int64", ("B", "T"))
MASK = TensorSpec("attention_mask", "int64", ("B", "T"))
LARGE_PIXELS = TensorSpec("large.pixel_values", "float32", ("B", 3, 16, 16))
LARGE_MASK = TensorSpec("large.attention_mask", "int64", ("B", "T"))
LARGE_BOXES = TensorSpec("large.bbox", "int64", ("B", "T", 4))
HINT = TensorSpec("hint", "float32", ("B", 4))
SEGMENTS = [
    made("small.look", [PIXELS], HINT, seed=1),
    made("small.read", [PIXELS, MASK], seed=2),
    made("large.look", [LARGE_PIXELS, HINT], seed=3),
    made("large.read", [LARGE_MASK, LARGE_BOXES, LARGE_PIXELS], seed=4),
]
INPUTS = {
    "pixel_values": "image",
    "attention_mask": "text",
    "large.pixel_values": "image",
    "large.attention_mask": "text",
    "large.bbox": "text",
}
FIRST = OperatingPoint("max_probability", {"small.look": 0.0, "small.read": None, "large.look": None})
FULL = OperatingPoint("max_probability", {"small.look": 1.1, "small.read": 1.1, "large.look": 1.1})


def encoder_of(encoding: Encoding, data: bytes) -> Encoder:
    return Encoder(encoding, read_tokenizer(data, "tokenizer", BadPackage, "x"))


def apart(package: Package, page: Page) -> Arrays:
    """The inputs of a page, made by two independent encoders."""
    data = package.read("tokenizer.json")
    made_of: Arrays = {}
    for prefix, encoding in (("", SMALL), ("large.", LARGE)):
        encoder = encoder_of(encoding, data)
        words, boxes = page.text(None)
        arrays = encoder.arrays(encoder.open(page)[0], words, boxes)
        made_of |= {prefix + name: values for name, values in arrays.items()}
    return made_of


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Package:
    data = (sample / "tokenizer.json").read_bytes()
    files = {"tokenizer.json": data, "large.tokenizer.json": data}
    encoders = Encoder(SMALL, encoder_of(SMALL, data)._cutter._tokenizer, {"large": encoder_of(LARGE, data)})  # type: ignore[union-attr]
    drawn = golden_page.draw(INPUTS, LARGE)
    arrays = encode_pages([golden_page.read_golden_page(*drawn, "golden page")], encoders, INPUTS)
    arrays = {name: values for name, values in arrays.items() if name in INPUTS}
    folder = tmp_path_factory.mktemp("cascade") / "two.ee"
    fields: dict[str, Any] = {"encoding": SMALL, "encodings": {"large": LARGE}}
    return handmade.package(folder, SEGMENTS, INPUTS, [arrays], files, drawn=drawn, **fields)


@pytest.fixture
def chain(package: Package) -> Chain:
    return ee_export.load(package.path, operating_point="full").with_point(FULL)


def pages_of(count: int, ocr: Any = None) -> list[Page]:
    """Pages of different sizes and text lengths, as JPEG files, which are decoded by draft."""
    rng, pages = np.random.default_rng(5), []
    for index in range(count):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (60 + 7 * index, 90, 3), np.uint8)).save(buffer, "JPEG")
        words = [f"word{index}"] * (3 * index)
        boxes = rng.integers(0, 500, (len(words), 4)) + np.array([0, 0, 500, 500])
        if ocr is None:
            pages.append(Page(buffer.getvalue(), words=words, boxes=boxes.tolist(), name=f"page {index}"))
        else:
            pages.append(Page(buffer.getvalue(), ocr=ocr, name=f"page {index}"))
    return pages


def require_expected(package: Package, pages: Sequence[Page], answers: Sequence[Any]) -> None:
    for page, answer in zip(pages, answers, strict=True):
        logits = handmade.run(SEGMENTS, apart(package, page))["large.read"][0]
        odds = np.exp(logits - logits.max())
        assert answer.exit == "large.read", answer
        np.testing.assert_allclose(list(answer.probabilities.values()), odds / odds.sum(), atol=1e-4)


def test_single_and_batched_pages_get_the_answers_of_the_two_models(package: Package, chain: Chain) -> None:
    pages = pages_of(9)
    require_expected(package, pages, [chain.predict(page) for page in pages])
    require_expected(package, pages, chain.predict_batch(pages))
    require_expected(package, pages, [chain.predict_encoded(apart(package, page)) for page in pages])
    sizes = dict.fromkeys(chain.exits, 4)
    require_expected(package, pages, list(chain.predict_many(pages, batch=sizes)))
    require_expected(package, pages, list(chain.predict_many(pages, batch=sizes, streams=2)))
    for page in pages:
        arrays = chain.encode([page])
        for name, values in apart(package, page).items():
            assert (arrays[name] == values).all() if name in INPUTS else True


def test_the_second_models_inputs_are_made_only_for_pages_that_stay(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages, opened = pages_of(4), []
    large = chain.encoder.further["large"]
    real = large.open

    def noted(page: Page) -> Any:
        opened.append(page.name)
        return real(page)

    monkeypatch.setattr(large, "open", noted)
    assert {answer.exit for answer in chain.with_point(FIRST).predict_batch(pages)} == {"small.look"}
    assert opened == []
    point = OperatingPoint("max_probability", {"small.look": 0.5, "small.read": 1.1, "large.look": 1.1})
    answers = chain.with_point(point).predict_batch(pages)
    stayed = [page.name for page, answer in zip(pages, answers, strict=True) if answer.exit != "small.look"]
    assert sorted(opened) == sorted(stayed)


def test_ocr_runs_once_for_both_models(package: Package, chain: Chain) -> None:
    sizes = []

    def ocr(image: Image.Image) -> tuple[list[str], list[list[int]]]:
        sizes.append(image.size)
        return ["one", "two"], [[0, 0, 100, 100], [100, 100, 900, 900]]

    pages = pages_of(3, ocr)
    answers = chain.predict_batch(pages)
    assert sizes == [(90, 60), (90, 67), (90, 74)], "each page once, whole"
    assert all(answer.ocr_used for answer in answers)
    require_expected(package, pages, answers)


def test_a_page_that_fails_at_the_second_model_does_not_fail_others(
    package: Package, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = pages_of(4)
    large = chain.encoder.further["large"]
    real = large.open

    def broken(page: Page) -> Any:
        if page.name == "page 2":
            raise BadPage("page 2: gone meanwhile")
        return real(page)

    monkeypatch.setattr(large, "open", broken)
    for answers in (
        chain.predict_batch(pages, return_errors=True),
        list(chain.predict_many(pages, batch=dict.fromkeys(chain.exits, 4))),
    ):
        assert isinstance(answers[2], BadPage) and "page 2: gone meanwhile" in str(answers[2])
        require_expected(package, [pages[0], pages[1], pages[3]], [answers[0], answers[1], answers[3]])
    with pytest.raises(EeError, match="page 2"):
        chain.predict_batch(pages)


def test_a_segment_that_fails_for_pages_together_answers_them_one_by_one(package: Package, chain: Chain) -> None:
    class Refusing:
        def __init__(self, segment: Any) -> None:
            self.exit, self.inputs, self.outputs, self._segment = segment.exit, segment.inputs, segment.outputs, segment

        def run(self, state: Any, last: Any = ()) -> Any:
            if len(state["large.pixel_values"]) > 1:
                raise MemoryError
            return self._segment.run(state, last)

    segments = [*chain.segments[:3], Refusing(chain.segments[3])]
    pages = pages_of(4)
    refusing = chain.beside(package, chain.target, chain.operating_point, segments)
    require_expected(package, pages, refusing.predict_batch(pages))


def test_a_deadline_answers_by_the_first_model(package: Package, chain: Chain) -> None:
    costs = measure(chain, pages_of(3), None, runs=1)
    assert costs.encode_ms["large"] > 0
    slow = replace(chain.target, costs=replace(costs, encode_ms={"large": 1e8}))
    hurried = Chain(package, slow, chain.operating_point, chain.executor, chain.encoder)
    answers = hurried.predict_batch(pages_of(3), deadline_ms=1e5)
    assert [(answer.exit, answer.deadline_hit) for answer in answers] == [("small.read", True)] * 3
    anytime = chain.predict_batch(pages_of(3), deadline_ms=1e6)
    require_expected(package, pages_of(3), anytime)


def test_the_golden_page_of_both_encodings_is_proven(package: Package, tmp_path: Path) -> None:
    assert set(verify_package(package, "cpu-fp32").differences) == {segment.exit for segment in SEGMENTS}
    for name in package.manifest.files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(package.read(name))
    darker = replace(LARGE, image_mean=(0.4, 0.4, 0.4))
    other = seal(tmp_path, replace(package.manifest, encodings={"large": darker}))
    with pytest.raises(NotEqual, match=r"golden page 0: .*grey level"):
        verify_package(other, "cpu-fp32")


def test_labelled_pages_are_observed_through_both(package: Package, chain: Chain, tmp_path: Path) -> None:
    from ee_export.data.dataset import read_dataset

    for label, page in zip(("apple", "pear"), pages_of(2), strict=True):
        (tmp_path / label).mkdir()
        assert isinstance(page.image, bytes)
        (tmp_path / label / "a.jpg").write_bytes(page.image)
        (tmp_path / label / "a.json").write_text(json.dumps({"words": page.words, "boxes": page.boxes}))
    predictions = observe(chain, read_dataset(tmp_path, handmade.LABELS), None, lambda done, total: None)
    for index, page in enumerate(pages_of(2)):
        for name, logits in handmade.run(SEGMENTS, apart(package, page)).items():
            np.testing.assert_allclose(predictions.logits[name][index], logits[0], atol=1e-4)
    assert predictions.tokens["small.look"].tolist() == [0, 0]
    assert predictions.tokens["small.read"][1] <= SMALL.max_text_tokens < 40


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encodings": {}}, r"inputs\.large\.pixel_values: unknown input"),
        ({"encodings": {"large": LARGE, "Other": LARGE}}, r"encodings\.Other: .*letters a–z"),
        ({"encodings": {"large": LARGE, "other": LARGE}}, r"encodings\.other: .*an input such as other\.pixel_values"),
        ({"encodings": {"large": replace(LARGE, image_size=0)}}, r"encodings\.large\.image_size"),
        ({"encodings": {"large": replace(LARGE, max_text_tokens=0)}}, r"encodings\.large\.max_text_tokens"),
        ({"encodings": {"large": replace(LARGE, image_size=17)}}, r"large\.look\.inputs\.large\.pixel_values: found"),
        ({"inputs": {**INPUTS, "large.bbox": "image"}}, r"inputs\.large\.bbox: found \"image\", expected 'text'"),
        ({"inputs": {name: source for name, source in INPUTS.items() if "." in name}}, "encoding|inputs.pixel_values"),
    ],
)
def test_encodings_that_do_not_fit_are_refused_by_name(
    package: Package, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    for name in package.manifest.files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(package.read(name))
    with pytest.raises(BadPackage, match=message):
        seal(tmp_path, replace(package.manifest, **changes))


def test_the_second_tokenizer_is_needed(package: Package, tmp_path: Path) -> None:
    for name in package.manifest.files:
        if name != "large.tokenizer.json":
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(package.read(name))
    seal(tmp_path, package.manifest)
    with pytest.raises(BadPackage, match=r"files: large\.tokenizer\.json is not listed"):
        ee_export.load(tmp_path, operating_point="full")


@pytest.mark.parametrize("beside", [False, True])
def test_a_text_is_read_after_that_of_another_encoding_but_not_beside_it(
    package: Package, tmp_path: Path, beside: bool
) -> None:
    last = [MASK, LARGE_MASK] if beside else [MASK]
    segments = [made("a", [MASK], seed=1), made("b", [LARGE_MASK], seed=2), made("c", last, seed=3)]
    inputs = {"attention_mask": "text", "large.attention_mask": "text"}
    tokenizer = package.read("tokenizer.json")
    files = {"tokenizer.json": tokenizer, "large.tokenizer.json": tokenizer}
    arrays = {key: np.ones((1, 3), np.int64) for key in inputs}
    fields: dict[str, Any] = {"encoding": SMALL, "encodings": {"large": LARGE}}
    if beside:
        with pytest.raises(BadPackage, match=r"segments\.c\.inputs\.attention_mask: has an axis of the text's length"):
            handmade.package(tmp_path / "x.ee", segments, inputs, [arrays], files, **fields)
        return
    mixed = handmade.package(tmp_path / "x.ee", segments, inputs, [arrays], files, **fields)
    point = OperatingPoint("max_probability", {"a": 1.1, "b": 1.1})
    chain, pages = ee_export.load(mixed.path, operating_point="full").with_point(point), pages_of(5)
    for answers in (chain.predict_batch(pages), list(chain.predict_many(pages, batch=dict.fromkeys("abc", 4)))):
        for page, answer in zip(pages, answers, strict=True):
            assert not isinstance(answer, EeError)
            logits = handmade.run(segments, apart(package, page))["c"][0]
            odds = np.exp(logits - logits.max())
            np.testing.assert_allclose(list(answer.probabilities.values()), odds / odds.sum(), atol=1e-4)


def test_a_state_as_long_as_a_text_does_not_pass_to_the_text_of_another_encoding(package: Package) -> None:
    rows = TensorSpec("rows", "float32", ("B", "T"))
    target = package.manifest.targets["cpu-fp32"]
    first, second, *others, last = target.segments
    second = replace(second, outputs=(*second.outputs, rows))
    last = replace(last, inputs=(*last.inputs, rows))
    changed = replace(target, segments=(first, second, *others, last))
    with pytest.raises(Refused, match=r"segments\.large\.read\.inputs\.rows: has an axis of the text's length"):
        check(replace(package.manifest, targets={"cpu-fp32": changed}))
