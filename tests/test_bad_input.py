"""Bad input through the command line: one line that names the file and the remedy, exit status 2, nothing half written."""

import json
import shutil
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import LABELS
from tests.conftest import run_command as run_process


def one_line(status: int, err: str, *parts: str) -> None:
    """Exit status 2 and a single line that holds every part."""
    assert status == 2, err
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("ee-export: ")
    for part in parts:
        assert part in lines[0]


def page(folder: Path, words: object = None, boxes: object = None, name: str = "page") -> Path:
    """A readable page with a JSON beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 30), 200, np.uint8)).save(folder / f"{name}.png")
    if words is not None:
        (folder / f"{name}.json").write_text(json.dumps({"words": words, "boxes": boxes}))
    return folder / f"{name}.png"


def huge_png(path: Path, side: int) -> None:
    """A PNG that declares ``side`` x ``side`` pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_a_missing_page_is_named(call, package: Path) -> None:
    status, _, err = call("predict", package, "nowhere.png")
    one_line(status, err, "nowhere.png", "no such file", "check the path")


def test_an_empty_path_is_not_the_current_folder(call, package: Path) -> None:
    status, _, err = call("predict", package, "")
    one_line(status, err, "the path is empty; name a file or a folder")


def test_a_truncated_page_is_named(call, package: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 200), np.uint8)).save(whole)
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:3000])
    status, _, err = call("predict", package, tmp_path / "cut.jpg")
    one_line(status, err, "cut.jpg", "truncated or damaged", "copy or scan it again")


def test_a_file_that_is_no_image_is_named(call, package: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    status, _, err = call("predict", package, tmp_path / "text.png")
    one_line(status, err, "text.png", "not an image file", "convert it")


def test_an_image_of_30000_by_30000_is_refused_before_it_is_decoded(call, package: Path, tmp_path: Path) -> None:
    huge_png(tmp_path / "huge.png", 30_000)
    status, _, err = call("predict", package, tmp_path / "huge.png")
    one_line(status, err, "huge.png", "too large", "scale it down")


@pytest.mark.parametrize(
    ("words", "boxes", "message"),
    [
        (["a", "b"], [[0, 0, 1, 1]], "2 words but 1 boxes"),
        (["a"], [[0, 0, 1, 1006]], "box 0 is [0, 0, 1, 1006]"),
        (["a"], [[-6, 0, 1, 1]], "numbers in 0–1000"),
        (["a"], [[0, 0.1, 0.5, 0.2]], "all 1 boxes lie in 0–1"),
        (["a"], [[5, 0, 1, 1]], "x0 ≤ x1"),
        (["a"], [["0", 0, 1, 1]], "box 0 is ['0', 0, 1, 1]"),
        (["a"], [[0, 0, 1]], "expected x0, y0, x1, y1"),
        (["a"], [[0, 0, 1, None]], "box 0"),
        (["a"], [[0, 0, 1, float("nan")]], "box 0"),
        ([7], [[0, 0, 1, 1]], "word 0 is 7, not a string"),
        ("ab", [[0, 0, 1, 1]] * 2, "must be lists"),
    ],
)
def test_words_and_boxes_that_do_not_fit_are_named(
    call, package: Path, tmp_path: Path, words, boxes, message: str
) -> None:
    path = page(tmp_path / "pages", words, boxes)
    status, _, err = call("predict", package, path)
    one_line(status, err, "page.json", message)


@pytest.mark.parametrize("text", ["{", "[]", '{"words": []}', "[" * 100_000])
def test_a_json_of_another_form_is_named(call, package: Path, tmp_path: Path, text: str) -> None:
    path = page(tmp_path / "pages")
    path.with_suffix(".json").write_text(text)
    status, _, err = call("predict", package, path)
    one_line(status, err, "page.json", "expected")


def test_one_bad_page_is_reported_in_its_row_and_the_others_get_answers(call, package: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        page(tmp_path / "pages", [], [], name)
    (tmp_path / "pages" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    status, out, _ = call("predict", package, tmp_path / "pages", "--jsonl")
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 1
    assert [Path(row["path"]).name for row in rows] == ["a.png", "b.png", "c.png"]
    assert set(rows[1]) == {"path", "error"}
    for row in (rows[0], rows[2]):
        assert {"label", "exit", "score", "probabilities", "ocr_used", "latency_ms"} <= set(row)
    status, out, err = call("predict", package, tmp_path / "pages")
    assert status == 1
    assert "b.png" in err
    assert len(err.strip().splitlines()) == 1


def test_a_folder_without_pages_is_named(call, package: Path, tmp_path: Path) -> None:
    status, _, err = call("predict", package, tmp_path)
    one_line(status, err, str(tmp_path), "no page images")


def test_a_data_folder_with_one_class_or_an_empty_one_is_refused(call, tiny_checkpoint: Path, tmp_path: Path) -> None:
    page(tmp_path / "one" / "receipt", [], [])
    status, _, err = call("train", tmp_path / "one", "--out", tmp_path / "out")
    one_line(status, err, "only the class 'receipt'", "at least two classes")
    page(tmp_path / "two" / "receipt", [], [])
    (tmp_path / "two" / "form").mkdir()
    status, _, err = call("build", tiny_checkpoint, tmp_path / "two", "--out", tmp_path / "out")
    one_line(status, err, "two/form", "the class is empty")
    status, _, err = call("train", tmp_path / "none", "--out", tmp_path / "out")
    one_line(status, err, "none", "no such folder")
    assert not list(tmp_path.glob("*out*"))


def test_labels_that_the_package_lacks_are_named(call, package: Path, tmp_path: Path) -> None:
    for label in ("receipt", "invoice"):
        page(tmp_path / "data" / label, [], [])
    before = (package / "manifest.json").read_bytes()
    for command in ("calibrate", "tune"):
        status, _, err = call(command, package, tmp_path / "data")
        one_line(status, err, "'invoice' is not a label of the model", "ad_buy_form")
    assert (package / "manifest.json").read_bytes() == before


def test_a_class_without_held_out_pages_is_named(
    call, package: Path, pages_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(pages_folder, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "receipt")
    status, _, _ = call("tune", package, tmp_path / "data")
    assert status == 0
    assert "no pages of 1 of 7 classes (receipt)" in caplog.text


def test_too_few_pages_to_certify_are_refused_with_the_number_needed(call, package: Path, pages_folder: Path) -> None:
    status, _, err = call("tune", package, pages_folder, "--epsilon", "0.01")
    one_line(status, err, "35 pages are too few", "at least 230 are needed", "--epsilon 0.064")
    status, _, err = call("tune", package, pages_folder, "--epsilon", "0.01", "--on-average")
    one_line(status, err, "35 pages are too few", "on average; at least 99 are needed", "--epsilon 0.028")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--on-average",), "name a share of pages with --epsilon"),
        (("--criterion", "margn"), "unknown criterion 'margn': expected one of"),
        (("--risk", "loss"), "unknown risk 'loss': expected one of accuracy_lost, disagreement"),
        (("--min-accuracy", "0.9", "--max-cost-ms", "3"), "exclude each other"),
        (("--min-accuracy", "0.9", "--epsilon", "0.1"), "exclude each other"),
        (
            ("--thresholds", "per_clas"),
            "unknown kind of thresholds 'per_clas': expected one of one, per_exit, per_class",
        ),
        (("--epsilon", "1.5"), "1.5 is not in the range"),
        (("--max-cost-ms", "0.001"), "no thresholds cost 0.001 ms a page or less; the cheapest cost"),
    ],
)
def test_a_wish_that_cannot_be_is_refused(
    call, package: Path, pages_folder: Path, arguments: tuple[str, ...], words: str
) -> None:
    status, _, err = call("tune", package, pages_folder, *arguments)
    one_line(status, err, words)


def test_lines_that_predict_did_not_print_are_named(call, package: Path, tmp_path: Path) -> None:
    lines = tmp_path / "answers.jsonl"
    lines.write_text('{"exit": "vision", "scores": {"vision": 0.5}}\nhello\n')
    status, _, err = call("monitor", package, lines)
    one_line(status, err, "answers.jsonl:2", "not a row of")
    lines.write_text('{"exit": "vision", "scores": {"vision": 0.5}}\n')
    status, _, err = call("monitor", package, lines)
    one_line(status, err, "1 answered pages are too few to compare; at least 20 are needed")


def test_too_few_pages_to_keep_apart_are_counted(call, tiny_checkpoint: Path, tmp_path: Path) -> None:
    for label in LABELS:
        page(tmp_path / "data" / label, [], [])
    status, _, err = call("build", tiny_checkpoint, tmp_path / "data", "--out", tmp_path / "out.ee", "--ocr", "none")
    one_line(status, err, "too few pages (7)")
    assert not list(tmp_path.glob("*out.ee*"))


def _stock(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "layoutlmv3"}')
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "tokenizer.json").write_text("{}")


def _pickle_only(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "early_exit_layoutlmv3"}')
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "config.json: missing"),
        (_stock, "--init FOLDER"),
        (_pickle_only, "model.safetensors: missing"),
        (lambda folder: (folder / "config.json").write_text("{") and None, "missing"),
    ],
)
def test_a_checkpoint_that_is_not_ours_is_refused(call, pages_folder: Path, tmp_path: Path, make, message: str) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    make(folder)
    status, _, err = call("build", folder, pages_folder, "--out", tmp_path / "out.ee")
    one_line(status, err, "checkpoint", message)
    assert not list(tmp_path.glob("*out.ee*"))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_checkpoint_is_refused(
    call, tiny_checkpoint: Path, pages_folder: Path, tmp_path: Path, name: str
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    status, _, err = call("build", folder, pages_folder, "--out", tmp_path / "out.ee")
    one_line(status, err, "checkpoint")


def test_unknown_names_are_refused_with_the_valid_ones(call, package: Path, pages_folder: Path, tmp_path: Path) -> None:
    status, _, err = call("predict", package, pages_folder, "--target", "cpu-int4")
    one_line(status, err, "unknown target 'cpu-int4'", "cpu-fp32")
    status, _, err = call("predict", package, pages_folder, "--operating-point", "fast")
    one_line(status, err, "unknown operating point 'fast'", "full, default")
    status, _, err = call("train", pages_folder, "--out", tmp_path / "out", "--exits", "encoder.13")
    one_line(status, err, "unknown exit 'encoder.13'", "encoder.1 … encoder.4")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[training]\nepoch = 3\n")
    status, _, err = call("train", pages_folder, "--out", tmp_path / "out", "--recipe", recipe)
    one_line(status, err, "recipe.toml: [training] epoch: unknown key; did you mean epochs?")
    recipe.write_text("[model]\nhiden_size = 3\n")
    status, _, err = call("train", pages_folder, "--out", tmp_path / "out", "--recipe", recipe)
    one_line(status, err, "recipe.toml: [model] hiden_size: unknown key; did you mean hidden_size?")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("predict", "x.ee", "page.png", "--deadline-ms", "-1"), "'--deadline-ms'"),
        (("predict", "x.ee"), "Missing argument 'PATHS...'"),
        (("predict", "x.ee", "page.png", "--fast"), "No such option"),
        (("guess",), "No such command 'guess'"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_names_its_help(call, arguments: tuple[str, ...], message: str) -> None:
    status, _, err = call(*arguments)
    one_line(status, err, message, "--help`")


def test_existing_files_are_not_overwritten_without_force(
    call, package: Path, tiny_checkpoint: Path, pages_folder: Path
) -> None:
    before = sorted(path.stat().st_mtime_ns for path in package.rglob("*"))
    status, _, err = call("build", tiny_checkpoint, pages_folder, "--out", package)
    one_line(status, err, "copy.ee", "exists already", "--force")
    assert sorted(path.stat().st_mtime_ns for path in package.rglob("*")) == before


def test_a_real_process_prints_one_line_and_exits_2() -> None:
    done = run_process("predict", "nowhere.ee", "page.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "ee-export: nowhere.ee: no such package folder; build one with `ee-export build`\n"


def test_an_exit_that_the_checkpoint_lacks_is_named(
    call, tiny_checkpoint: Path, pages_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.ee"
    status, _, err = call("build", tiny_checkpoint, pages_folder, "--exits", "vision,encoder.9", "--out", out)
    one_line(status, err, "unknown exit of this checkpoint 'encoder.9': expected one of vision, text, fusion")
    assert not list(tmp_path.glob("*out.ee*"))


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["pages.csv"], ["pages.csv: no column label; it has path, kind", "rename the column"]),
        (["pages.tar.gz"], ["pages.tar.gz: cannot be read as a tar archive (compressed", "decompress it"]),
        (["few"], ["few: no pages to validate", "add pages to every class"]),
        (["few", "--device", "gpu"], ["unknown device 'gpu': expected one of auto, cpu, cuda, mps"]),
        (["few", "--recipe", "wrong.toml"], ['wrong.toml: [training] epochs: found "x", expected a whole number']),
    ],
)
def test_data_and_settings_that_cannot_train_are_refused_before_anything_is_written(
    call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], parts: list[str]
) -> None:
    for label in ("form", "receipt"):
        page(tmp_path / "few" / label, ["a"], [[0, 0, 9, 9]])
    (tmp_path / "pages.csv").write_text("path,kind\nfew/form/page.png,form\n")
    (tmp_path / "wrong.toml").write_text('[training]\nepochs = "x"\n')
    with tarfile.open(tmp_path / "pages.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "few" / "form" / "page.png", "page.png")
    monkeypatch.chdir(tmp_path)
    status, _, err = call("train", *arguments, "--out", "out")
    last = [line for line in err.splitlines() if "pages to train on" not in line]
    one_line(status, "\n".join(last), *parts)
    assert not list(tmp_path.glob("out*"))
