"""OCR engines that misbehave, and odd arguments of ``Page``."""

import array
import collections
import decimal
import fractions
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attacks.family import Attack, Family, Ground, Wrong
from attacks.images import answers_agree, predict_among
from attacks.odd_images import _blank_png
from attacks.packages import check_answer
from attacks.pages import drawn_page, read_nothing
from ee_export import Page
from ee_export.errors import EeError

Engine = Callable[..., Any]
_BOX = [1, 1, 9, 9]


class PanicException(BaseException):
    """Stand-in for ``pyo3_runtime.PanicException``, which engines written in Rust raise. It is no ``Exception``."""


class _Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class _Odd:
    """A value that raises at every use."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __len__(self) -> int:
        raise RuntimeError("no length")

    def __iter__(self) -> Any:
        raise RuntimeError("no items")

    def __repr__(self) -> str:
        raise RuntimeError("no text")


class _Huge(collections.abc.Sequence):
    """A sequence that states a length of 2^62 and gives words for ever."""

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, index: Any) -> str:
        return "word"


class _Letters(str):
    """Text that is not quite text."""

    def strip(self, *arguments: Any) -> str:
        raise RuntimeError("no strip")


def _gives(value: Any) -> Engine:
    return lambda image: value


def _raises(error: BaseException) -> Engine:
    """An engine that raises such an error, a new one each time: one alone would collect the tracebacks of all its pages."""

    def engine(image: Image.Image) -> Any:
        raise type(error)(*error.args)

    return engine


def _changes(change: Callable[[Image.Image], object]) -> Engine:
    def engine(image: Image.Image) -> Any:
        change(image)
        return ["a"], [_BOX]

    return engine


def _recurses(image: Image.Image) -> Any:
    return _recurses(image)


def _in_a_thread(image: Image.Image) -> Any:
    """Raises in another thread too, as engines with pools of their own do."""
    thread = threading.Thread(target=image.load)
    thread.start()
    thread.join()
    return [], []


def _many_lines(image: Image.Image) -> Any:
    raise ValueError("line 1\nline 2\x1b[2J\r\n" + "x" * 100_000 + "\ud800")


def _raise_chained(image: Image.Image) -> Any:
    try:
        raise KeyError("first")
    except KeyError as error:
        raise ValueError("second") from error


def _raise_group(image: Image.Image) -> Any:
    raise ExceptionGroup("group", [ValueError("a"), TypeError("b")])


async def _asynchronous(image: Image.Image) -> Any:
    return [], []


def _return_generator(image: Image.Image) -> Any:
    yield ["a"]
    yield [_BOX]


ENGINES: tuple[tuple[str, Engine], ...] = (
    ("returns None", _gives(None)),
    ("returns one list", _gives(["a"])),
    ("returns three values", _gives((["a"], [_BOX], [0.9]))),
    ("returns no values", _gives(())),
    ("returns text", _gives("ab")),
    ("returns a number", _gives(7)),
    ("returns an object of words", _gives({"words": ["a"], "boxes": [_BOX]})),
    ("returns a set", _gives({"a", "b"})),
    ("returns pairs", _gives([("a", _BOX), ("b", _BOX)])),
    ("returns words alone", _gives((["a", "b"], None))),
    ("returns boxes alone", _gives((None, [_BOX]))),
    ("returns more words", _gives((["a", "b"], [_BOX]))),
    ("returns more boxes", _gives((["a"], [_BOX, _BOX]))),
    ("returns polygons", _gives((["a"], [[[1, 1], [9, 1], [9, 9], [1, 9]]]))),
    ("returns flat polygons", _gives((["a"], [[1, 1, 9, 1, 9, 9, 1, 9]]))),
    ("returns boxes in 0-1", _gives((["a"], [[0.1, 0.1, 0.9, 0.2]]))),
    ("returns boxes in pixels", _gives((["a"], [[100, 2000, 300, 2100]]))),
    ("returns boxes of text", _gives((["a"], [["1", "1", "9", "9"]]))),
    ("returns boxes of None", _gives((["a"], [None]))),
    ("returns boxes of NaN", _gives((["a"], [[float("nan")] * 4]))),
    ("returns boxes of infinity", _gives((["a"], [[0, 0, float("inf"), 9]]))),
    ("returns boxes of complex numbers", _gives((["a"], [[1j, 1, 9, 9]]))),
    ("returns boxes of decimals", _gives((["a"], [[decimal.Decimal("1.5")] * 4]))),
    ("returns boxes of a decimal NaN", _gives((["a"], [[decimal.Decimal("sNaN")] * 4]))),
    ("returns boxes of fractions", _gives((["a"], [[fractions.Fraction(1, 3)] * 4]))),
    ("returns boxes a step outside", _gives((["a"], [[-1, 1, 1001, 9]]))),
    ("returns boxes of huge numbers", _gives((["a"], [[10**400, 1, 9, 9]]))),
    ("returns an array of boxes", _gives((["a", "b"], np.array([_BOX, _BOX])))),
    ("returns an array of float boxes", _gives((["a"], np.array([_BOX], np.float32)))),
    ("returns an array of boxes with an axis more", _gives((["a"], np.array([[_BOX]])))),
    ("returns an empty array", _gives(([], np.zeros((0, 4))))),
    ("returns an array of words", _gives((np.array(["a", "b"]), [_BOX, _BOX]))),
    ("returns words as numpy text", _gives(([np.str_("a")], [np.array(_BOX)]))),
    ("returns words as bytes", _gives(([b"a"], [_BOX]))),
    ("returns words of None", _gives(([None, "a"], [_BOX, _BOX]))),
    ("returns words of numbers", _gives(([12.5], [_BOX]))),
    ("returns words of odd text", _gives(([_Letters("a")], [_BOX]))),
    ("returns half a surrogate pair", _gives((["a\ud800"], [_BOX]))),
    ("returns a word of 3 MB", _gives((["ab" * 1_500_000], [_BOX]))),
    ("returns tuples", _gives((("a",), (tuple(_BOX),)))),
    ("returns arrays of the standard library", _gives((["a"], [array.array("i", _BOX)]))),
    ("returns a deque", _gives((collections.deque(["a"]), collections.deque([_BOX])))),
    ("returns iterators", lambda image: (iter(["a"]), iter([_BOX]))),
    ("returns maps", lambda image: (map(str, [1]), map(list, [_BOX]))),
    ("is a generator", _return_generator),
    ("is a coroutine", _asynchronous),
    ("returns an odd value", lambda image: _Odd()),
    ("returns odd words", lambda image: (_Odd(), [_BOX])),
    ("returns odd boxes", lambda image: (["a"], [_Odd()])),
    ("returns a sequence without end", lambda image: (_Huge(), [_BOX])),
    ("returns the image", lambda image: (image, image)),
    ("returns boxes that are ranges", _gives((["a"], [range(4)]))),
    ("takes no argument", lambda: ([], [])),
    ("takes two arguments", lambda image, language: ([], [])),
    ("raises ValueError", _raises(ValueError("no"))),
    ("raises an error without text", _raises(ValueError())),
    ("raises an error of many lines", _many_lines),
    ("raises an error that has no text", _raises(_Unprintable())),
    ("raises StopIteration", _raises(StopIteration())),
    ("raises StopAsyncIteration", _raises(StopAsyncIteration())),
    ("raises MemoryError", _raises(MemoryError())),
    ("raises OSError", _raises(OSError(28, "No space left on device"))),
    ("raises TimeoutError", _raises(TimeoutError("60 s"))),
    ("raises BrokenPipeError", _raises(BrokenPipeError(32, "Broken pipe"))),
    ("raises a UnicodeDecodeError", lambda image: b"\xff".decode()),
    ("raises a group", _raise_group),
    ("raises from another error", _raise_chained),
    ("raises AssertionError", _raises(AssertionError())),
    ("raises EeError", _raises(EeError("the engine's own"))),
    ("raises a panic", _raises(PanicException("called `Option::unwrap()` on a `None` value"))),
    ("recurses without end", _recurses),
    ("loads the image in a thread", _in_a_thread),
    ("draws on the image", _changes(lambda image: image.paste(0, (0, 0, *image.size)))),
    ("closes the image", _changes(lambda image: image.close())),
    ("shrinks the image", _changes(lambda image: image.thumbnail((5, 5)))),
    ("changes the image's mode", _changes(lambda image: image.putalpha(0) if image.mode in ("L", "RGB") else None)),
    ("deletes the image's data", _changes(lambda image: setattr(image, "im", None))),
    ("leaves the folder", _changes(lambda image: os.chdir("/"))),
)  # fmt: skip
"""Name of each engine, and the engine."""


def engine(ground: Ground, index: int) -> Attack:
    """An engine that misbehaves, on a page of a PIL image (even index) or of a file's bytes (odd index)."""
    name, ocr = ENGINES[index // 2]

    def act() -> None:
        here = Path.cwd()
        source: Any = _blank_png(240, 320) if index % 2 else drawn_page().copy()
        page = Page(source, ocr=ocr, name="a page of an odd engine")
        try:
            check_answer(ground.chain, ground.chain.predict(page))
        finally:
            os.chdir(here)
            _predict_after(ground)
            predict_among(ground, page)
            os.chdir(here)

    return Attack(f"an engine that {name}", act)


def interrupt(ground: Ground, index: int) -> Attack:
    """An engine during which the user ends the run: the exception passes, and the chain works afterwards."""
    error = (KeyboardInterrupt, SystemExit)[index]

    def act() -> None:
        try:
            ground.chain.predict(Page(drawn_page(), ocr=_raises(error()), name="an interrupted page"))
        except error:
            _predict_after(ground)
            return
        raise Wrong(f"{error.__name__} of an OCR engine was held back")

    return Attack(error.__name__, act)


def _predict_after(ground: Ground) -> None:
    """The chain answers a good page as before, whatever an engine did."""
    good = Page(drawn_page(), ["a"], [_BOX], name="a good page")
    first, second = ground.chain.predict(good), ground.chain.predict(good)
    if not answers_agree(first, second):
        raise Wrong("two predictions of one page differ")


class _Sized:
    """Has a length and items, and is no sequence."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> str:
        if index:
            raise IndexError
        return "a"


def _arguments() -> tuple[tuple[str, Callable[[], dict[str, Any]]], ...]:
    """Odd arguments of Page. Each is made by a callable, so that one that cannot be made has its own row."""
    image = drawn_page()
    words: dict[str, Any] = {"words": ["a"], "boxes": [_BOX]}
    closed = image.copy()
    closed.close()

    def subclassed() -> Image.Image:
        class Own(Image.Image):
            def load(self) -> Any:
                raise RuntimeError("no pixels")

        own = Own()
        own._mode, own._size = "L", (9, 9)
        return own

    def lazy(data: bytes) -> Image.Image:
        import io

        return Image.open(io.BytesIO(data))

    return (
        ("nothing", dict),
        ("image None, words None", lambda: {"image": None, "words": None}),
        ("image 7", lambda: {"image": 7, **words}),
        ("image of True", lambda: {"image": True, **words}),
        ("image of a list", lambda: {"image": [[0] * 9] * 9, **words}),
        ("image of a dict", lambda: {"image": {}, **words}),
        ("image of bytes of length 0", lambda: {"image": b"", **words}),
        ("image of a bytearray", lambda: {"image": bytearray(_blank_png(9, 9)), **words}),
        ("image of a memoryview", lambda: {"image": memoryview(_blank_png(9, 9)), **words}),
        ("image of an open file", lambda: {"image": Path("/dev/null").open("rb"), **words}),
        ("image of an array", lambda: {"image": np.zeros((30, 20), np.uint8), **words}),
        ("image of a float array", lambda: {"image": np.zeros((30, 20, 3), np.float32), **words}),
        ("image of an empty array", lambda: {"image": np.zeros((0, 20), np.uint8), **words}),
        ("image of an array of objects", lambda: {"image": np.full((3, 3), None), **words}),
        ("image of four axes", lambda: {"image": np.zeros((1, 3, 30, 20), np.uint8), **words}),
        ("an empty path", lambda: {"image": "", **words}),
        ("a path with NUL", lambda: {"image": "a\0b.png", **words}),
        ("a path of half a surrogate pair", lambda: {"image": "a\ud800.png", **words}),
        ("a path of 10,000 letters", lambda: {"image": "x" * 10_000 + ".png", **words}),
        ("a path of a folder", lambda: {"image": Path("/"), **words}),
        ("a path of a device", lambda: {"image": "/dev/zero", **words}),
        ("a path of nothing", lambda: {"image": "/dev/null", **words}),
        ("a path of memory", lambda: {"image": "/proc/self/mem", **words}),
        ("a path below a file", lambda: {"image": "/etc/hostname/page.png", **words}),
        ("a path of bytes", lambda: {"image": os.fsencode("/no/such.png"), **words}),
        ("a URL", lambda: {"image": "https://example.org/page.png", **words}),
        ("an image of no pixels", lambda: {"image": Image.new("L", (0, 0)), **words}),
        ("an image without width", lambda: {"image": Image.new("L", (0, 9)), **words}),
        ("an image without height, by an engine", lambda: {"image": Image.new("L", (9, 0)), "ocr": read_nothing}),
        ("an image of one pixel, by an engine", lambda: {"image": Image.new("L", (1, 1)), "ocr": read_nothing}),
        ("a closed image", lambda: {"image": closed, **words}),
        ("a closed image, by an engine", lambda: {"image": closed, "ocr": read_nothing}),
        ("an image whose load raises", lambda: {"image": subclassed(), **words}),
        ("a lazy image that is cut", lambda: {"image": lazy(_blank_png(90, 90)[:-30]), **words}),
        ("a lazy image that is cut, by an engine", lambda: {"image": lazy(_blank_png(90, 90)[:-30]), "ocr": read_nothing}),
        ("an image of 16 bits", lambda: {"image": Image.new("I;16", (30, 20), 65535), **words}),
        ("an image of floats", lambda: {"image": Image.new("F", (30, 20), float("nan")), **words}),
        ("an image in HSV", lambda: {"image": Image.new("HSV", (30, 20)), **words}),
        ("an image in Lab", lambda: {"image": Image.new("LAB", (30, 20)), **words}),
        ("an image in La", lambda: {"image": Image.new("La", (30, 20)), **words}),
        ("an image in RGBa", lambda: {"image": Image.new("RGBa", (30, 20)), **words}),
        ("an image in PA", lambda: {"image": Image.new("PA", (30, 20)), **words}),
        ("an image of 20,000 x 10,000", lambda: {"image": Image.new("1", (20_000, 10_000)), **words}),
        ("words alone", lambda: {"words": ["a"]}),
        ("words and boxes alone", lambda: words),
        ("words without boxes", lambda: {"image": image, "words": ["a"]}),
        ("boxes without words", lambda: {"image": image, "boxes": [_BOX]}),
        ("words of text", lambda: {"image": image, "words": "a", "boxes": [_BOX]}),
        ("words of bytes", lambda: {"image": image, "words": b"a", "boxes": [_BOX]}),
        ("words of a generator", lambda: {"image": image, "words": (x for x in "a"), "boxes": [_BOX]}),
        ("words of a set", lambda: {"image": image, "words": {"a"}, "boxes": [_BOX]}),
        ("words of an odd sequence", lambda: {"image": image, "words": _Sized(), "boxes": [_BOX]}),
        ("words without end", lambda: {"image": image, "words": _Huge(), "boxes": [_BOX]}),
        ("words 7", lambda: {"image": image, "words": 7, "boxes": [_BOX]}),
        ("words alone 7", lambda: {"words": 7}),
        ("words alone of None", lambda: {"words": [None]}),
        ("boxes 7", lambda: {"image": image, "words": ["a"], "boxes": 7}),
        ("boxes of an array", lambda: {"image": image, "words": ["a"], "boxes": np.array([_BOX])}),
        ("a box of an array", lambda: {"image": image, "words": ["a"], "boxes": [np.array(_BOX, np.float16)]}),
        ("a box of an array of NaN", lambda: {"image": image, "words": ["a"], "boxes": [np.full(4, np.nan)]}),
        ("a box of arrays", lambda: {"image": image, "words": ["a"], "boxes": [[np.array([1, 2])] * 4]}),
        ("a box of a dict", lambda: {"image": image, "words": ["a"], "boxes": [{1: 1, 2: 2, 3: 3, 4: 4}]}),
        ("a box of a set", lambda: {"image": image, "words": ["a"], "boxes": [{1, 2, 3, 4}]}),
        ("a box of an odd value", lambda: {"image": image, "words": ["a"], "boxes": [_Odd()]}),
        ("odd words", lambda: {"image": image, "words": [_Odd()], "boxes": [_BOX]}),
        ("text that is not quite text", lambda: {"image": image, "words": [_Letters("a")], "boxes": [_BOX]}),
        ("an engine that is no callable", lambda: {"image": image, "ocr": "tesseract"}),
        ("an engine that is a class", lambda: {"image": image, "ocr": dict}),
        ("name None", lambda: {"image": image, **words, "name": None}),
        ("a name of half a surrogate pair", lambda: {"image": b"", **words, "name": "a\ud800"}),
        ("a name of escape sequences", lambda: {"image": b"", **words, "name": "\x1b[2J\n\r\x07"}),
        ("a name of 1 MB", lambda: {"image": b"", **words, "name": "x" * 1_000_000}),
        ("a name of rich markup", lambda: {"image": b"", **words, "name": "[bold]x[/nope]"}),
        ("limits None", lambda: {"image": image, **words, "limits": None}),
        ("a file without end", lambda: {"image": "/dev/urandom", **words}),
        ("an unknown user's folder", lambda: {"image": "~nobody-here/page.png", **words}),
    )  # fmt: skip


def page_argument(ground: Ground, index: int) -> Attack:
    """A page made of odd arguments."""
    name, make = _arguments()[index]

    def act() -> None:
        page = Page(**make())
        try:
            check_answer(ground.chain, ground.chain.predict(page))
        finally:
            predict_among(ground, page)

    return Attack(name, act)


FAMILIES = (
    Family("ocr-engines", lambda package: 2 * len(ENGINES), engine, least=60, timeout_s=30.0),
    Family("interrupts", lambda package: 2, interrupt, least=2, timeout_s=30.0),
    Family("page-arguments", lambda package: len(_arguments()), page_argument, least=40, timeout_s=30.0),
)
