"""Pages from outside: the accepted words, boxes and word files, and the messages for the others."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ee_export.data.limits import Limits
from ee_export.data.page import Page, read_page
from ee_export.errors import BadPage, EeError

IMAGE = Image.new("L", (30, 40), 255)


def boxes_of(boxes: Any, words: Any = None) -> Any:
    """The boxes of a page after checking."""
    return Page(IMAGE, words=["word"] * len(boxes) if words is None else words, boxes=boxes).boxes


@pytest.mark.parametrize(
    "boxes",
    [
        [[0.1, 0.2, 0.3, 0.25], [0.5, 0.2, 0.6, 0.25]],
        [[0, 0, 1, 1]],
        [[0, 0, 0, 0]] * 3,
        [[-0.01, 0, 1.02, 0.5]],
        [[0.1, 0.2, 0.3, 1.41]],  # of the page's width alone
        np.array([[0.1, 0.2, 0.3, 0.25]], np.float32),
    ],
)
def test_a_page_whose_boxes_all_lie_in_0_to_1_is_refused_with_the_remedy(boxes: Sequence[Any]) -> None:
    with pytest.raises(BadPage, match=f"all {len(boxes)} boxes lie in 0–1; expected 0–1000 .*; multiply by 1000"):
        boxes_of(boxes)


def test_one_box_in_0_to_1_among_others_is_valid_and_blank_words_are_not_counted() -> None:
    assert boxes_of([[0, 0, 1, 1], [5, 5, 9, 9]]) == [[0, 0, 1, 1], [5, 5, 9, 9]]
    assert boxes_of([[0, 0, 1, 1]], [" "]) == []
    assert boxes_of([]) == []
    with pytest.raises(BadPage, match="lie in 0–1"):
        boxes_of([[0, 0, 1, 1], [0, 0, 1000, 1000]], ["word", "\n"])


def test_words_without_known_places_need_no_boxes() -> None:
    assert Page(words=["word", " ", "next"]).words == ["word", "next"]


def test_edges_a_rounding_step_outside_are_clipped_and_further_ones_refused() -> None:
    assert boxes_of([[-1, 0, 1001, 30], [998, -5, 1005, 1004.9]]) == [[0, 0, 1000, 30], [998, 0, 1000, 1000]]
    for box in ([-5.5, 0, 9, 9], [0, 0, 9, 1006], [0, 0, 9, 1e300], [0, 0, 9, 10**400]):
        with pytest.raises(BadPage, match=r"page: box 1 is .*; expected x0, y0, x1, y1.*up to 5 outside are clipped"):
            boxes_of([[1, 1, 9, 9], box])


def test_checking_a_page_twice_gives_the_same() -> None:
    page = Page(IMAGE, words=["a"], boxes=[[-1, 3, 1001, 7.9]])
    assert page.boxes == [[0, 3, 1000, 7]]
    assert Page(IMAGE, words=page.words, boxes=page.boxes).boxes == page.boxes


@pytest.mark.parametrize(
    "box",
    [
        [9, 0, 5, 9],
        [0, 0, 9, float("nan")],
        [0, 0, 9, float("inf")],
        [0, 0, 9, True],
        ["1", "2", "9", "9"],
        "1299",
        {1: 0, 2: 0, 9: 0, 8: 0},
        [0, 0, 9],
        [0, 0, 9, None],
        [0, 0, 9, [9]],
        7,
        None,
    ],
)
def test_an_invalid_box_is_named_with_its_index(box: Any) -> None:
    with pytest.raises(BadPage, match=r"page: box 2 is .*expected x0, y0, x1, y1") as caught:
        boxes_of([[1, 1, 9, 9], [1, 1, 9, 9], box])
    assert len(str(caught.value)) < 300


def test_a_polygon_is_refused_with_the_expected_form() -> None:
    polygon = [[1, 1], [9, 1], [9, 9], [1, 9]]
    for box in (polygon, np.array(polygon, np.float32)):
        with pytest.raises(BadPage, match="of a polygon: its smallest and largest x and y"):
            boxes_of([box])
    with pytest.raises(BadPage, match=r"box 0 is .*of a polygon"):
        boxes_of(np.array([polygon]))


def test_arrays_of_words_and_boxes_are_lists() -> None:
    edges = [[1, 2, 3, 4], [5, 6, 7, 8]]
    for dtype in (np.int64, np.uint16, np.float32):
        page = Page(IMAGE, words=np.array(["a", "b"]), boxes=np.array(edges, dtype))  # type: ignore[arg-type]
        assert (page.words, page.boxes) == (["a", "b"], edges)
        assert type(page.words[0]) is str  # type: ignore[index]
    assert boxes_of([np.array(edges[0]), tuple(edges[1])]) == edges
    assert boxes_of(np.zeros((0, 4)), []) == []
    for boxes in (np.array(edges, bool), np.array(edges, str), np.array(edges, np.complex64), np.array(edges)[:, :3]):
        with pytest.raises(BadPage, match="expected"):
            boxes_of(boxes)


@pytest.mark.parametrize(
    "words", ["ab", 5, None, {"a": 1}, iter(["a", "b"]), b"ab", [1, "b"], [None, "b"], [["a"], "b"]]
)
def test_invalid_words_are_refused(words: Any) -> None:
    with pytest.raises(BadPage, match="page: word"):
        Page(IMAGE, words=words, boxes=[[1, 1, 9, 9]] * 2)
    with pytest.raises(BadPage, match="page: "):
        Page(words=words)


def test_half_a_surrogate_pair_is_read_as_the_replacement_character() -> None:
    words = ["cut\ud83d", "\ude00end", "whole\U0001f600", "\ud83d\ude00", "plain"]
    page = Page(IMAGE, words=words, boxes=[[1, 1, 9, 9]] * 5)
    assert page.words == ["cut\ufffd", "\ufffdend", "whole\U0001f600", "\U0001f600", "plain"]


def test_messages_are_one_short_printable_line_for_all_contents() -> None:
    for words in (["x", 10**3000], ["x", b"\x1b" * 10**6], ["x", {"k\n\x1b[31m": "v" * 10**6}]):
        with pytest.raises(BadPage) as caught:
            Page(IMAGE, words=words, boxes=[[1, 1, 9, 9]] * 2, name="odd\n\x1b[31mname")  # type: ignore[arg-type]
        message = str(caught.value)
        assert message.isprintable()
        assert len(message) < 500
        assert message.startswith("odd \\x1b[31mname: word 1 is ")


# Files of words.


@pytest.fixture
def image(tmp_path: Path) -> Path:
    IMAGE.save(tmp_path / "page.png")
    return tmp_path / "page.png"


GOOD = json.dumps({"words": ["a"], "boxes": [[1, 2, 3, 4]]})


@pytest.mark.parametrize("suffix", [".json", ".JSON"])
@pytest.mark.parametrize("text", [GOOD, "\ufeff" + GOOD])
def test_words_beside_an_image_are_read_with_suffixes_of_any_case(image: Path, suffix: str, text: str) -> None:
    image.with_suffix(suffix).write_text(text, encoding="utf-8")
    assert read_page(image).words == ["a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("null", "expected {"),
        ('"words"', "expected {"),
        ('{"words": ["a"]}', "words without boxes"),
        ('{"words": null, "boxes": null}', "must be lists"),
        ('{"words": ["a"], "words": ["b"], "boxes": [[1, 2, 3, 4]]}', "the key 'words' is repeated"),
        (
            "{" + ", ".join(f'"{index}": 0' for index in range(300_000)) + ', "299999": 1}',
            "the key '299999' is repeated",
        ),
        ('{"words": ["a"], "boxes": [[1, 2, 3, NaN]]}', "box 0 is [1, 2, 3, nan]"),
        ('{"words": ["a"], "boxes": [[1, 2, 3, 1e400]]}', "box 0 is [1, 2, 3, inf]"),
        ('{"words": ["a"], "boxes": [[1, 2, 3, %s]]}' % ("9" * 5000), "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"a": ' * 100_000, "not valid JSON"),
    ],
)
def test_a_file_that_holds_no_words_is_named(image: Path, text: str, message: str) -> None:
    image.with_suffix(".json").write_text(text)
    with pytest.raises(BadPage, match=rf"page\.json: .*{re.escape(message)}"):
        read_page(image)


def test_a_file_of_words_in_another_encoding_is_named(image: Path) -> None:
    image.with_suffix(".json").write_bytes(GOOD.replace("a", "ä").encode("latin-1"))
    with pytest.raises(BadPage, match=r"page\.json: not valid JSON"):
        read_page(image)


def test_a_folder_in_place_of_a_words_file_is_that_pages_error(image: Path) -> None:
    beside = image.with_suffix(".json")
    os.mkfifo(beside)
    with pytest.raises(BadPage, match=r"page\.json: a folder, pipe or device"):
        read_page(image)
    beside.unlink()
    beside.mkdir()
    with pytest.raises(BadPage, match=r"page\.json: a folder, pipe or device"):
        read_page(image)
    beside.rmdir()
    beside.symlink_to("nowhere")
    with pytest.raises(BadPage, match=r"page\.json: a link to a file that is missing"):
        read_page(image)
    beside.unlink()
    beside.symlink_to(beside.name)
    with pytest.raises(BadPage, match=r"page\.json: cannot be read"):
        read_page(image)


def test_a_file_of_words_beyond_the_limit_is_not_read(image: Path) -> None:
    beside = image.with_suffix(".json")
    beside.write_text(GOOD)
    with pytest.raises(BadPage, match=r"page\.json: more than 1e-05 MB.*max_json_bytes"):
        read_page(image, limits=Limits(max_json_bytes=10))
    os.truncate(beside, 1 << 40)  # a terabyte of nothing
    with pytest.raises(BadPage, match=r"page\.json: more than 16 MB"):
        read_page(image)


def test_a_page_that_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path, message in (
        (tmp_path / "pipe.png", "a pipe or device"),
        (tmp_path, "a folder, not an image file"),
        (tmp_path / "none.png", "no such file"),
        (tmp_path / "none.json", "no such file"),
        (tmp_path / ("long" * 100), "cannot be read"),
        (tmp_path / "nul\0.png", "cannot be read"),
        (tmp_path / "pipe.png" / "below.png", "no such file"),
    ):
        with pytest.raises(BadPage, match=message):
            read_page(path)


def test_the_longest_name_that_a_file_can_have_is_read(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 251 + ".tif")  # with .json it would be too long
    IMAGE.save(path)
    assert read_page(path).words is None


def test_every_error_prints_as_one_line_without_control_characters() -> None:
    assert str(EeError("a\r\nb\x1b[0m\u202e\udce4")) == r"a b\x1b[0m\u202e\udce4"
