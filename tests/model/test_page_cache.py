"""Pages are encoded once, into files with which an interrupted run resumes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from ee_export.data.dataset import read_dataset
from ee_export.data.encode import Encoder
from ee_export.data.labelled import Labelled
from ee_export.errors import BadData, BadPage, EeError
from ee_export.model import checkpoint
from ee_export.model.bert import EarlyExitBert
from ee_export.model.layoutlmv3 import EarlyExitLayoutLMv3
from ee_export.model.page_cache import encode_pages
from ee_export.model.pages import EncodedPages, encoding_digest
from tests.conftest import tiny_config


@pytest.fixture(scope="module")
def tokenizer(pages_folder: Path) -> Tokenizer:
    words = (json.loads(path.read_text())["words"] for path in sorted(pages_folder.rglob("*.json")))
    return checkpoint.train_tokenizer(words, 400)


@pytest.fixture
def pages(tmp_path: Path, pages_folder: Path) -> Path:
    """A copy of the pages that a test may change."""
    return Path(shutil.copytree(pages_folder, tmp_path / "pages"))


class Run:
    """Encodes pages into a folder, and counts those it encodes."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, stop_after: int | None = None, workers: int = 0, **config):
        self.encoder = Encoder(checkpoint.encoding_of(tiny_config(input_size=64, **config)), tokenizer)
        self.tokenizer, self.folder, self.stop_after, self.workers = tokenizer, folder, stop_after, workers
        self.calls: list[int] = []

    def __call__(self, data: Labelled, model=EarlyExitLayoutLMv3) -> EncodedPages:
        encoding = encoding_digest(self.encoder, self.tokenizer, model)
        return encode_pages(data, self.encoder, model, self.folder, encoding, self.progress, workers=self.workers)

    def progress(self, done: int, total: int) -> None:
        self.calls.append(done)
        if self.stop_after is not None and done >= self.stop_after:
            raise KeyboardInterrupt


def assert_encoded(pages: EncodedPages, data: Labelled, encoder: Encoder) -> None:
    assert pages.targets.tolist() == list(data.targets)
    for index in range(len(data)):
        page = data.page(index)
        image, _ = encoder.open(page)
        text = encoder.text(*page.text(None))
        ids, boxes = pages.text(index)
        assert pages.pixels is not None and np.array_equal(pages.pixels[index], encoder.pixels(image))
        assert np.array_equal(ids, text["input_ids"][0]) and np.array_equal(boxes, text["bbox"][0])


@pytest.mark.parametrize("workers", [0, 2])
def test_each_page_is_kept_as_the_runtime_encodes_it(
    tmp_path: Path, tokenizer: Tokenizer, pages_folder: Path, workers: int
) -> None:
    data = read_dataset(pages_folder)
    run = Run(tmp_path / "cache", tokenizer, workers=workers)
    pages = run(data)
    assert_encoded(pages, data, run.encoder)
    pages.release()
    assert_encoded(pages, data, run.encoder)
    assert run.calls[-1] == len(data)


def test_a_resumed_run_encodes_only_the_remaining_pages(
    tmp_path: Path, tokenizer: Tokenizer, pages_folder: Path
) -> None:
    data = read_dataset(pages_folder)
    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path / "cache", tokenizer, stop_after=32)(data)
    with (tmp_path / "cache" / "ids.bin").open("ab") as file:
        file.write(b"written before the process was killed")
    resumed = Run(tmp_path / "cache", tokenizer)
    assert_encoded(resumed(data), data, resumed.encoder)
    assert resumed.calls == [48, 56]
    again = Run(tmp_path / "cache", tokenizer)
    assert_encoded(again(data), data, again.encoder)
    assert again.calls == []


def test_a_bad_page_is_mended_and_the_pages_before_it_are_not_encoded_again(
    tmp_path: Path, tokenizer: Tokenizer, pages: Path
) -> None:
    data = read_dataset(pages)
    whole = data.paths[40].read_bytes()
    data.paths[40].write_bytes(whole[:200])
    for workers in (0, 1):
        with pytest.raises(BadPage, match=str(data.paths[40])) as refused:
            Run(tmp_path / f"cache{workers}", tokenizer, workers=workers)(data)
        assert "Traceback" not in str(refused.value)
    data.paths[40].write_bytes(whole)
    mended = Run(tmp_path / "cache0", tokenizer)
    assert_encoded(mended(data), data, mended.encoder)
    assert mended.calls == [56]


def test_changed_pages_words_labels_or_encodings_are_encoded_again(
    tmp_path: Path, tokenizer: Tokenizer, pages: Path
) -> None:
    Run(tmp_path / "cache", tokenizer)(read_dataset(pages))
    first = read_dataset(pages).paths[0]

    def change_image() -> None:
        Image.new("L", (300, 400), 77).save(first)

    def change_words() -> None:
        content = json.loads(first.with_suffix(".json").read_text())
        content["words"][0] = "changed"
        first.with_suffix(".json").write_text(json.dumps(content))

    def remove_page() -> None:
        first.unlink()
        first.with_suffix(".json").unlink()

    for change in (change_image, change_words, remove_page):
        change()
        run = Run(tmp_path / "cache", tokenizer)
        data = read_dataset(pages)
        assert_encoded(run(data), data, run.encoder)
        assert run.calls
    shorter = Run(tmp_path / "cache", tokenizer, max_text_tokens=32)
    assert_encoded(shorter(data), data, shorter.encoder)
    assert shorter.calls


@pytest.mark.parametrize("damage", ["cut", "no stamps", "not an object", "negative", "not JSON"])
def test_a_damaged_cache_is_encoded_again(
    tmp_path: Path, tokenizer: Tokenizer, pages_folder: Path, damage: str
) -> None:
    data = read_dataset(pages_folder).subset([0, 20, 40])
    cache = tmp_path / "cache"
    Run(cache, tokenizer)(data)
    state = json.loads((cache / "state.json").read_text())
    records = {
        "no stamps": json.dumps({name: value for name, value in state.items() if name != "stamps"}),
        "not an object": "[1]",
        "negative": json.dumps(state | {"pages": -1, "tokens": -1}),
        "not JSON": "{",
    }
    if damage == "cut":
        (cache / "ids.bin").write_bytes((cache / "ids.bin").read_bytes()[:-9])
    else:
        (cache / "state.json").write_text(records[damage])
    again = Run(cache, tokenizer)
    assert_encoded(again(data), data, again.encoder)
    assert again.calls == [3]


def test_a_model_of_words_keeps_no_pixels(tmp_path: Path, tokenizer: Tokenizer, pages_folder: Path) -> None:
    data = read_dataset(pages_folder)
    pages = Run(tmp_path / "cache", tokenizer)(data, EarlyExitBert)
    assert pages.pixels is None and len(pages.ids) == pages.ends[-1]
    assert not (tmp_path / "cache" / "pixels.bin").exists()


def test_a_page_without_words_is_refused_by_name(tmp_path: Path, tokenizer: Tokenizer, pages: Path) -> None:
    data = read_dataset(pages)
    data.paths[3].with_suffix(".json").unlink()
    with pytest.raises(BadData, match=f"{data.paths[3]}: no words"):
        Run(tmp_path / "cache", tokenizer)(data)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, tokenizer: Tokenizer, pages_folder: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(
        EeError, match=r"cache: encoded pages cannot be written \(Not a directory\); name another place"
    ):
        Run(tmp_path / "file" / "cache", tokenizer)(read_dataset(pages_folder))
