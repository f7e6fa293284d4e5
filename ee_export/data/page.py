"""A page to classify: an image, with words and boxes known or on demand, or words alone."""

import stat
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ee_export.data.find import WORDS_SUFFIX, words_beside
from ee_export.data.image import Source, decode_image
from ee_export.data.limits import DEFAULT_LIMITS, Limits
from ee_export.data.resize import Square
from ee_export.data.words import Boxes, Words, check_text, check_words, read_words
from ee_export.errors import BadPage, EeError, NoText, OcrFailed, is_fault, shorten

Ocr = Callable[[Image.Image], tuple[Sequence[str], Sequence[Sequence[float]]]]


@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """One page to classify.

    Attributes:
        image: a PIL image, a numpy array, or the bytes or path of an image file, see
            :func:`~ee_export.data.image.decode_image`. It is decoded when the page is predicted. A file is turned upright, an
            image or an array is used as it is.
        words: the page's text, if it is known. A page without text has ``words=[]``. A page of words alone has
            ``boxes=None`` and no image, for models that read nothing else.
        boxes: the place of each word: x0, y0, x1, y1 in 0–1000 of the page's width and height. Edges up to 5 outside are
            clipped.
        ocr: a callable from the decoded page to words and boxes. It is called only if the page has not exited when its text
            is needed.
        name: names the page in error messages.
        limits: the largest image and word file that are read.

    Raises:
        BadPage: words and boxes differ in number, a box is not four numbers in 0–1000, all boxes lie in 0–1, or there
            is neither an image nor words.
    """

    image: Source | None = None
    words: Sequence[str] | None = None
    boxes: Sequence[Sequence[float]] | None = None
    ocr: Ocr | None = None
    name: str = "page"
    limits: Limits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        if self.name == "page" and isinstance(self.image, str | Path):
            object.__setattr__(self, "name", str(self.image))
        if self.image is None and self.words is None:
            raise BadPage(f"{self.name}: neither an image nor words; a page has one of them at least")
        try:
            self._check_text()
        except EeError:
            raise
        except Exception as error:  # a caller's own kinds of lists can raise anything
            raise BadPage(
                f"{self.name}: words and boxes cannot be read ({type(error).__name__}: {shorten(error)}); give a list of strings "
                "and a list of boxes"
            ) from error

    def _check_text(self) -> None:
        if self.words is not None and self.boxes is not None:
            words, boxes = check_text(self.words, self.boxes, self.name)
            object.__setattr__(self, "words", words)
            object.__setattr__(self, "boxes", boxes)
        elif self.words is not None and self.image is None:
            words = [word for word in check_words(self.words, self.name) if word.strip()]
            object.__setattr__(self, "words", words)
        elif (self.words is None) != (self.boxes is None):
            raise BadPage(f"{self.name}: words or boxes are missing; give both")

    def decode(self) -> Image.Image:
        """Decode the page's picture: 8 bits, mode ``L`` or ``RGB``, upright if it is a file.

        See :func:`~ee_export.data.image.decode_image`.

        Raises:
            BadPage: there is no image, or it is missing, damaged, too large, or has unknown values.
        """
        return decode_image(self._source(), self.name, self.limits)[0]

    def decode_reduced(self, square: Square) -> tuple[Image.Image, bool]:
        """Decode the page's picture to be resized to ``square``. Also returns True if it has all pixels and colours.

        See :func:`~ee_export.data.image.decode_image`. Raises as :meth:`decode`.
        """
        return decode_image(self._source(), self.name, self.limits, square)

    def _source(self) -> Source:
        if self.image is None:
            raise BadPage(f"{self.name}: has words but no image, which the model reads; give the image")
        return self.image

    def text(self, image: Image.Image | None) -> tuple[Words, Boxes]:
        """Return words and boxes, read by ``ocr`` if they are not given. Unknown boxes are all 0.

        Raises:
            NoText: there are neither words nor an OCR engine.
            OcrFailed: the engine failed, or returned words and boxes that do not fit together.
        """
        if self.words is not None:  # checked and normalised on construction
            boxes = [[0, 0, 0, 0]] * len(self.words) if self.boxes is None else self.boxes
            return self.words, boxes  # type: ignore[return-value]
        if self.ocr is None:
            raise NoText(
                f"{self.name}: has neither words nor an OCR engine, and the next exit reads text; put words and "
                "boxes in a .json beside the image, or install tesseract-ocr"
            )
        return self.read(self.decode() if image is None else image)

    def read(self, image: Image.Image) -> tuple[Words, Boxes]:
        """Run the OCR engine on the page's image, or on a strip of it.

        Raises:
            OcrFailed: the engine raised an exception, or returned no words and boxes that fit together.
        """
        assert self.ocr is not None
        name = f"{self.name}: OCR engine"
        try:
            result = self.ocr(image)
            if isinstance(result, tuple | list) and len(result) == 2:
                return check_text(*result, name, OcrFailed)
        except OcrFailed:
            raise
        except EeError as error:
            raise OcrFailed(f"{name}: {error}") from error
        except BaseException as error:
            if not is_fault(error):
                raise
            raise OcrFailed(
                f"{name}: raised {type(error).__name__} ({shorten(error)}); mend the engine, or give the page's words and boxes"
            ) from error
        kind = f"{len(result)} values" if isinstance(result, tuple | list) else type(result).__name__
        raise OcrFailed(f"{name}: returned {kind}; expected two lists, words and boxes, as (words, boxes)")


def read_page(path: Path, ocr: Ocr | None = None, limits: Limits = DEFAULT_LIMITS) -> Page:
    """Make a page from an image file, with words from the ``.json`` of the same name, or else from ``ocr``.

    A ``.json`` by itself is a page of words, ``{"words": […]}``, for models that read nothing else.

    Raises:
        BadPage: there is no such file, it is no regular file, or the JSON is not ``{"words": […], "boxes": […]}``.
    """
    _require_file(path)
    alone = path.suffix.lower() == WORDS_SUFFIX
    for beside in [path] if alone else words_beside(path):
        try:
            content = read_words(beside, limits)
        except FileNotFoundError:
            continue
        if alone and "boxes" not in content:
            return Page(words=check_words(content["words"], str(path)), name=str(path), limits=limits)
        if "boxes" not in content:
            raise BadPage(f'{beside}: words without boxes; expected {{"words": […], "boxes": […]}}')
        words, boxes = check_text(content["words"], content["boxes"], str(beside))
        return Page(None if alone else path, words=words, boxes=boxes, name=str(path), limits=limits)
    if alone:
        raise BadPage(f"{path}: no such file; check the path")
    return Page(path, ocr=ocr, name=str(path), limits=limits)


def _require_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise BadPage(f"{path}: no such file; check the path") from None
    except (OSError, ValueError) as error:
        raise BadPage(f"{path}: cannot be read ({error}); check the path and its permissions") from None
    if stat.S_ISDIR(mode):
        raise BadPage(f"{path}: a folder, not an image file; check the path")
    if not stat.S_ISREG(mode):
        raise BadPage(f"{path}: a pipe or device, not an image file; write it to a file first")


def require_known_boxes(page: Page, inputs: Container[str]) -> None:
    """Raise BadPage if a model with these inputs reads boxes, and the page has words without boxes."""
    if "bbox" in inputs and page.words is not None and page.boxes is None:
        raise BadPage(
            f"{page.name}: words without boxes, and the model reads where they stand; give boxes, or an OCR engine"
        )
