"""OCR on demand with Tesseract; any callable from an image to words and boxes serves in its place."""

import os
import shutil

from PIL import Image

from ee_export.errors import EeError
from ee_export.image import decode_image
from ee_export.page import Boxes, Ocr, Words


def tesseract(lang: str = "eng", timeout_s: float = 60.0) -> Ocr:
    """An OCR engine for :class:`~ee_export.Page`: Debian's tesseract-ocr through pytesseract.

    Sets ``OMP_THREAD_LIMIT`` to 1 for the process, where it is not set: on a machine that does nothing else, a second
    thread makes Tesseract a tenth faster; on a busy one its threads wait for each other and a page takes a minute.

    Returns:
        A callable that reads a PIL image and returns words and their boxes, x0, y0, x1, y1 in 0–1000 of the image's
        width and height. A page without words gives two empty lists.

    Raises:
        EeError: pytesseract or the tesseract program is not installed; says how to install it. The callable raises it
            where Tesseract fails or takes longer than ``timeout_s``.
    """
    try:
        import pytesseract
    except ImportError:
        raise EeError("OCR needs pytesseract: `pip install ee_export[ocr]`") from None
    if shutil.which("tesseract") is None:
        raise EeError("OCR needs the tesseract program: `apt-get install tesseract-ocr`")
    os.environ.setdefault("OMP_THREAD_LIMIT", "1")

    def read(image: Image.Image) -> tuple[Words, Boxes]:
        image, _ = decode_image(image, "the image")
        try:
            found = pytesseract.image_to_data(image, lang=lang, timeout=timeout_s, output_type=pytesseract.Output.DICT)
        except (pytesseract.TesseractError, RuntimeError, OSError) as error:
            raise EeError(f"tesseract failed: {' '.join(str(error).split())}") from None
        words: Words = []
        boxes: Boxes = []
        for word, left, top, width, height in zip(
            found["text"], found["left"], found["top"], found["width"], found["height"], strict=True
        ):
            if word.strip():
                words.append(word)
                boxes.append(_scaled(image, left, top, left + width, top + height))
        return words, boxes

    return read


def installed() -> bool:
    """Whether :func:`tesseract` can run here."""
    try:
        tesseract()
    except EeError:
        return False
    return True


def _scaled(image: Image.Image, x0: int, y0: int, x1: int, y1: int) -> list[int]:
    """Pixels to 0–1000 of the image's width and height."""
    edges = (x0 / image.width, y0 / image.height, x1 / image.width, y1 / image.height)
    return [min(1000, max(0, round(1000 * edge))) for edge in edges]
