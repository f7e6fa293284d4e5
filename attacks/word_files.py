"""Files of words and boxes that are odd: read with ``read_page``, and by the command line in whole folders."""

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from attacks.family import Attack, Family, Ground
from attacks.images import predict_among
from attacks.json_changes import Raw, Twice, dump
from attacks.packages import check_answer
from attacks.pages import drawn_page, read_nothing
from ee_export import read_page

Write = Callable[[Path], object]
"""Makes something at the path of the word file."""


def _bytes(data: bytes) -> Write:
    return lambda path: path.write_bytes(data)


def _json(value: Any) -> Write:
    return lambda path: path.write_bytes(dump(value).encode())


def _page(words: Any, boxes: Any = None) -> Write:
    count = len(words) if isinstance(words, list) else 1
    return _json({"words": words, "boxes": [[1, 1, 9, 9]] * count if boxes is None else boxes})


def _link(target: str) -> Write:
    return lambda path: path.symlink_to(target)


def _folder_with_files(path: Path) -> None:
    path.mkdir()
    (path / "page.json").write_text("{}")


def _unreadable(path: Path) -> None:
    path.write_text("{}")
    path.chmod(0)


def _link_to_a_file(path: Path) -> None:
    real = path.with_suffix(".real")
    real.write_text(json.dumps({"words": ["TOTAL"], "boxes": [[1, 1, 9, 9]]}))
    path.symlink_to(real.name)


@cache
def word_files() -> tuple[tuple[str, Write], ...]:
    """Name of each odd word file, and the function that writes it. All are small, and none takes long to read."""
    box = [1, 1, 9, 9]
    good = json.dumps({"words": ["TOTAL", "é日"], "boxes": [box, box]}, ensure_ascii=False)
    files: list[tuple[str, Write]] = [
        ("good", _bytes(good.encode())),
        ("UTF-8 with a byte order mark", _bytes(b"\xef\xbb\xbf" + good.encode())),
        ("UTF-16", _bytes(good.encode("utf-16"))),
        ("UTF-16 without a mark", _bytes(good.encode("utf-16-le"))),
        ("UTF-32", _bytes(good.encode("utf-32"))),
        ("latin-1", _bytes(good.replace("日", "").encode("latin-1"))),
        ("cut in a letter", _bytes(good.encode()[:-30])),
        ("empty", _bytes(b"")),
        ("blanks", _bytes(b" \n\t")),
        ("NUL bytes", _bytes(bytes(1000))),
        ("random bytes", _bytes(bytes(range(256)) * 4)),
        ("an image", lambda path: drawn_page().save(path, "PNG")),
        ("two documents", _bytes(good.encode() * 2)),
        ("JSON lines", _bytes(good.encode() + b"\n" + good.encode())),
        ("a comment", _bytes(b"// words\n" + good.encode())),
        ("a trailing comma", _bytes(good.encode()[:-1] + b",}")),
        ("half a surrogate pair", _page(["a\ud800b", "\udfff"])),
        ("surrogates in the wrong order", _page(["\udc00\ud800"])),
        ("half a pair in a key", _json({"words": ["a"], "boxes": [box], "\ud800": 1})),
        ("NUL in a word", _page(["a\0b"])),
        ("control characters", _page(["\x1b[2J", "\x07", "\x7f", "\x85"])),
        ("blank words", _page(["", " ", "\u3000", "\u200b", "\xad", "\ufeff"])),
        ("combining marks alone", _page(["\u0301" * 500])),
        ("right-to-left marks", _page(["\u202e", "\u2066abc"])),
        ("no characters", _page(["\ufffe", "\U0010ffff", "\ue000"])),
        ("special tokens", _page(["</s>", "<s>", "<pad>", "<mask>", "<unk>", "<|endoftext|>"])),
        ("a word of 5,000 letters", _page(["x" * 5000])),
        ("a word of 1,000 different signs", _page(["".join(map(chr, range(0x4E00, 0x4E00 + 1000)))])),
        ("10,000 words", _page(["total"] * 10_000)),
        ("no words", _page([], [])),
        ("words null", _json({"words": None, "boxes": [box]})),
        ("boxes null", _json({"words": ["a"], "boxes": None})),
        ("both null", _json({"words": None, "boxes": None})),
        ("no boxes", _json({"words": ["a"]})),
        ("no words key", _json({"boxes": [box]})),
        ("other keys", _json({"tokens": ["a"], "bboxes": [box]})),
        ("keys in capitals", _json({"Words": ["a"], "Boxes": [box]})),
        ("words as text", _json({"words": "TOTAL", "boxes": [box] * 5})),
        ("words as an object", _json({"words": {"0": "a"}, "boxes": [box]})),
        ("words as a number", _json({"words": 7, "boxes": [box]})),
        ("words in lists", _page([["a"], ["b"]])),
        ("words as objects", _page([{"text": "a"}])),
        ("words as numbers", _page([1, 2.5])),
        ("words null and true", _page([None, True])),
        ("boxes as an object", _json({"words": ["a"], "boxes": {"0": box}})),
        ("boxes as text", _json({"words": ["a"], "boxes": "1 1 9 9"})),
        ("boxes flat", _json({"words": ["a"], "boxes": box})),
        ("fewer boxes", _json({"words": ["a", "b"], "boxes": [box]})),
        ("more boxes", _json({"words": ["a"], "boxes": [box, box]})),
        ("null", _json(None)),
        ("a number", _json(7)),
        ("text", _json("words")),
        ("a list", _json([{"words": ["a"], "boxes": [box]}])),
        ("a list of words", _json(["a"])),
        ("true", _json(True)),
        ("words twice", _json({"words": Twice(["a"], ["b"]), "boxes": [box]})),
        ("boxes twice", _json({"words": ["a"], "boxes": Twice([box], [])})),
        ("500 unknown keys", _json({"words": ["a"], "boxes": [box], **{f"k{index}": index for index in range(500)}})),
        ("nested 500 deep", _json({"words": ["a"], "boxes": [box], "more": Raw("[" * 500 + "]" * 500)})),
        ("nested 100,000 deep", _json({"words": ["a"], "boxes": [box], "more": Raw("[" * 100_000 + "]" * 100_000)})),
        ("a box nested 900 deep", _page(["a"], [Raw("[" * 900 + "]" * 900)])),
        ("a FIFO", lambda path: os.mkfifo(path)),
        ("a folder", lambda path: path.mkdir()),
        ("a folder with files", _folder_with_files),
        ("not readable", _unreadable),
        ("a link to a file that cannot be read", _link("/proc/self/mem")),
        ("a dangling link", _link("nowhere.json")),
        ("a link to itself", lambda path: path.symlink_to(path.name)),
        ("a link to zeros without end", _link("/dev/zero")),
        ("a link to nothing", _link("/dev/null")),
        ("a link to the terminal", _link("/dev/tty")),
        ("a link to a folder", _link("/tmp")),
        ("a link to a good file", _link_to_a_file),
    ]  # fmt: skip
    edges: list[tuple[str, Any]] = [
        ("NaN", Raw("NaN")), ("Infinity", Raw("Infinity")), ("1e400", Raw("1e400")), ("-1", -1), ("-0.4", -0.4), ("1000.4", 1000.4), ("1001", 1001), ("1e9", 1e9),
        ("400 digits", Raw("9" * 400)), ("5,000 digits", Raw("9" * 5000)), ("null", None), ("true", True), ("text", "9"), ("a list", [9]), ("an object", {"x": 9}),
        ("2^63", 2**63), ("-2^63", -(2**63)), ("1e-320", Raw("1e-320")),
    ]  # fmt: skip
    files += [(f"a box edge of {name}", _page(["a", "b"], [[1, 1, 9, edge], box])) for name, edge in edges]
    files += [(f"a first edge of {name}", _page(["a"], [[edge, 1, 9, 9]])) for name, edge in edges[:8]]
    shapes: list[tuple[str, Any]] = [
        ("no edges", []), ("three edges", [1, 2, 3]), ("five edges", [1, 2, 3, 4, 5]), ("eight edges", [1, 1, 9, 1, 9, 9, 1, 9]), ("corners", [[1, 1], [9, 1], [9, 9], [1, 9]]),
        ("names", {"x0": 1, "y0": 1, "x1": 9, "y1": 9}), ("null", None), ("a number", 7), ("text", "abcd"), ("true", True), ("reversed edges", [9, 9, 1, 1]), ("no area", [5, 5, 5, 5]),
        ("the whole page", [0, 0, 1000, 1000]),
    ]  # fmt: skip
    files += [(f"a box of {name}", _page(["a"], [shape])) for name, shape in shapes]
    files += [
        ("all boxes in 0-1", _page(["a", "b"], [[0.1, 0.1, 0.5, 0.2], [0.2, 0.5, 0.9, 0.6]])),
        ("all boxes in pixels", _page(["a", "b"], [[100, 2000, 300, 2100], [400, 2000, 600, 2100]])),
        ("all boxes zero", _page(["a", "b"], [[0, 0, 0, 0]] * 2)),
        ("boxes as percentages", _page(["a", "b"], [[10, 10, 50, 20], [20, 50, 90, 60]])),
    ]
    return tuple(files)


def read_word_file(ground: Ground, index: int) -> Attack:
    """An odd word file beside a good image (even index), or alone (odd index), through ``read_page``."""
    name, write = word_files()[index // 2]
    alone = bool(index % 2)

    def act() -> None:
        folder = ground.folder("words")
        if not alone:
            drawn_page().save(folder / "page.png")
        write(folder / "page.json")
        page = read_page(folder / ("page.json" if alone else "page.png"), read_nothing)
        try:
            check_answer(ground.chain, ground.chain.predict(page))
        finally:
            predict_among(ground, page)

    return Attack(f"{name}{', alone' if alone else ''}", act)


FAMILIES = (Family("word-files", lambda package: 2 * len(word_files()), read_word_file, least=40, timeout_s=30.0),)
