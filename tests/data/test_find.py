"""Which files are pages, which are not, and that the difference is counted."""

import json
import logging
import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from ee_export.data.dataset import read_dataset, split_stratified
from ee_export.data.find import IMAGE_SUFFIXES, Skipped, find_pages
from ee_export.errors import BadData

PAGE = Image.new("L", (30, 40), 255)


def make(folder: Path, *names: str) -> Path:
    """Empty files, with their folders."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def names_in(folder: Path, *, words_alone: bool = False) -> tuple[list[str], str]:
    """Names of the pages, relative to the folder, and the message about skipped files."""
    skipped = Skipped()
    pages = [str(page.relative_to(folder)) for page in find_pages(folder, skipped, words_alone=words_alone)]
    return pages, str(skipped) if skipped else ""


def test_images_are_found_by_every_suffix_that_pillow_reads_in_upper_and_lower_case(tmp_path: Path) -> None:
    make(tmp_path, *(f"{index}{suffix}" for index, suffix in enumerate(sorted(IMAGE_SUFFIXES))), "A.JPG", "B.Tiff")
    pages, rest = names_in(tmp_path)
    assert len(pages) == len(IMAGE_SUFFIXES) + 2
    assert {".jfif", ".jpe", ".jp2", ".avif", ".pbm", ".pnm"} <= IMAGE_SUFFIXES
    assert rest == ""


def test_pages_come_sorted_folder_by_folder(tmp_path: Path) -> None:
    make(tmp_path, "b.png", "a/z.png", "a.png", "a/b/c.png", "c/a.png", "a-1.png")
    paths = [tmp_path / name for name in names_in(tmp_path)[0]]
    assert paths == sorted(tmp_path.rglob("*.png"))


def test_files_of_the_operating_system_are_no_pages_and_are_not_counted(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "._a.png", ".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX/._a.png", ".git/b.png")
    make(tmp_path, "a.json", "a.JSON")
    assert names_in(tmp_path) == (["a.png"], "")
    assert names_in(tmp_path, words_alone=True) == (["a.png"], "")


def test_skipped_files_are_counted_in_one_line(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "b.pdf", "sub/c.PDF", "notes.txt", "a.docx", "words.json")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "dangling.png").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to(tmp_path)
    make(tmp_path.parent / "elsewhere", "x.png")
    (tmp_path / "linked").symlink_to(tmp_path.parent / "elsewhere")
    pages, rest = names_in(tmp_path)
    assert pages == ["a.png"]
    assert rest == (
        "passed over: 2 PDFs, 2 broken links, pipes or devices, 1 file of words without an image, 2 linked folders, "
        "2 other files"
    )
    assert names_in(tmp_path / "linked") == (["x.png"], ""), "a link that is named is followed"


def test_a_model_of_words_gets_every_file_of_words_without_an_image(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "a.json", "b.json", "sub/c.JSON")
    assert names_in(tmp_path, words_alone=True) == (["a.png", "b.json", "sub/c.JSON"], "")


def test_a_linked_file_is_a_page(tmp_path: Path) -> None:
    make(tmp_path, "real.bin", "pages/a.png")
    (tmp_path / "pages" / "b.png").symlink_to(tmp_path / "real.bin")
    assert names_in(tmp_path / "pages")[0] == ["a.png", "b.png"]


def test_files_with_further_pages_are_counted_without_decoding_them(tmp_path: Path) -> None:
    other = Image.new("L", (30, 40), 0)
    for name in ("a.tif", "b.TIFF", "c.gif", "d.webp"):
        PAGE.save(tmp_path / name, save_all=True, append_images=[other, PAGE])
    PAGE.save(tmp_path / "single.tif")
    PAGE.save(tmp_path / "single.gif")
    PAGE.convert("RGB").save(tmp_path / "e.jpg", format="MPO", save_all=True, append_images=[other.convert("RGB")])
    (tmp_path / "torn.tif").write_bytes(b"II*\0")
    skipped = Skipped()
    for path in sorted(tmp_path.iterdir()):
        skipped.add_frames(path)
    assert str(skipped) == (
        "passed over: all pages but the first of 1 GIF, all pages but the first of 2 TIFFs, all pages but the first of 1 WebP"
    )


# Folders of classes.


def words_page(folder: Path, name: str = "page") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"words": ["a"], "boxes": [[1, 2, 3, 4]]}))


def test_two_spellings_of_a_class_are_one_class(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "Verträge") for form in ("NFC", "NFD"))
    words_page(tmp_path / composed, "1")
    words_page(tmp_path / apart, "2")
    words_page(tmp_path / "Zeugnisse", "3")
    data = read_dataset(tmp_path)
    assert data.labels == (composed, "Zeugnisse")
    assert sorted((page.name, target) for page, target in zip(data.paths, data.targets, strict=True)) == [
        ("1.json", 0),
        ("2.json", 0),
        ("3.json", 1),
    ]
    for labels in ((apart, "Zeugnisse"), (composed, "Zeugnisse")):
        known = read_dataset(tmp_path, labels)
        assert (known.labels, sorted(known.targets)) == (labels, [0, 0, 1])


def test_a_class_folder_that_is_not_utf_8_is_refused_and_such_a_page_is_not(tmp_path: Path) -> None:
    for label in ("a", "b"):
        words_page(tmp_path / label, os.fsdecode(b"M\xe4rz"))
    data = read_dataset(tmp_path)
    assert len(data.digest()) == 64
    assert sum(map(len, split_stratified(data, {"one": 0.5, "two": 0.5}, 0).values())) == 2
    words_page(tmp_path / os.fsdecode(b"M\xe4rz"))
    with pytest.raises(BadData, match=r"M\\udce4rz: the class folder's name is not UTF-8"):
        read_dataset(tmp_path)


def test_a_data_folder_counts_the_files_that_it_skips(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for label in ("a", "b"):
        words_page(tmp_path / label)
        PAGE.save(tmp_path / label / "page.png")
        words_page(tmp_path / label, "alone")
    make(tmp_path, "a/x.pdf", "b/sub/y.png", "__MACOSX/a.png", "README.md", "loose.png")
    PAGE.save(tmp_path / "a" / "several.tif", save_all=True, append_images=[PAGE])
    with caplog.at_level(logging.WARNING, "ee_export"):
        data = read_dataset(tmp_path)
    assert (data.labels, len(data)) == (("a", "b"), 3)
    (line,) = caplog.messages
    assert line == (
        f"{tmp_path}: passed over: all pages but the first of 1 TIFF, 1 PDF, 2 files of words without images, "
        "1 folder in a class folder, 1 image outside the class folders"
    )
