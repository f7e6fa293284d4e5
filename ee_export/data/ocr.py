"""OCR on demand: Tesseract, and the registry of engines by which commands find others."""

import contextlib
import io
import os
import shutil
from collections.abc import Callable

from PIL import Image

from ee_export.data.image import decode_image
from ee_export.data.page import Boxes, Ocr, Words
from ee_export.errors import EeError, OcrFailed, is_fault, one_line, printable, require_known, shorten
from ee_export.registry import Registry

_WORD = 5
"""Level of the rows of Tesseract's table that hold a word. Others hold pages, blocks, paragraphs and lines."""
_COLUMNS = 12


def tesseract(lang: str = "eng", timeout_s: float = 60.0) -> Ocr:
    """Make an OCR engine for :class:`~ee_export.Page` of the program ``tesseract``, such as Debian's tesseract-ocr.

    The program gets the image through a pipe, so it needs no temporary folder. It runs on one thread
    (``OMP_THREAD_LIMIT`` in its own environment) unless this process's environment sets that variable. On an idle
    machine, a second thread makes Tesseract a tenth faster. On a busy one its threads wait for each other, and a page
    takes a minute.

    Args:
        lang: languages, as Tesseract names them, such as ``eng+deu``.
        timeout_s: seconds after which the program is ended.

    Returns:
        A callable that reads a PIL image and returns words and their boxes, x0, y0, x1, y1 in 0–1000 of the image's
        width and height. A page without words gives two empty lists.

    Raises:
        EeError: the tesseract program is not installed. The message states how to install it. The callable raises
            OcrFailed if Tesseract fails or takes longer than ``timeout_s``.
    """
    program = shutil.which("tesseract")
    if program is None:
        raise EeError("OCR needs the tesseract program: `apt-get install tesseract-ocr`")

    def read(image: Image.Image) -> tuple[Words, Boxes]:
        image, _ = decode_image(image, "the image")
        plain = io.BytesIO()
        image.save(plain, "PPM")
        table = _run([program, "stdin", "stdout", "-l", lang, "tsv"], plain.getvalue(), timeout_s)
        words: Words = []
        boxes: Boxes = []
        for line in table.split("\n"):
            row = line.split("\t")
            if len(row) == _COLUMNS and row[0] == str(_WORD) and row[-1].strip():
                left, top, width, height = map(int, row[6:10])
                words.append(row[-1])
                boxes.append(_scale_box(image, left, top, left + width, top + height))
        return words, boxes

    return read


def _run(command: list[str], data: bytes, timeout_s: float) -> str:
    """Run the program on an image, and return its output. On any exception, the program and its children are killed."""
    import signal
    import subprocess  # imported lazily, because most processes run no OCR

    environment = {"OMP_THREAD_LIMIT": "1", **os.environ}
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, start_new_session=True
        )
    except OSError as error:
        raise OcrFailed(f"tesseract failed: {command[0]} cannot be started ({error.strerror})") from None
    with process:
        try:
            table, complaint = process.communicate(data, timeout_s)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise OcrFailed(
                    f"tesseract failed: no answer after {timeout_s:g} s; allow more with timeout_s"
                ) from None
            raise
    if process.returncode:
        reason = " ".join(complaint.decode("utf-8", "replace").split()) or f"exit status {process.returncode}"
        raise OcrFailed(f"tesseract failed: {printable(shorten(reason))}")
    return table.decode("utf-8", "replace")


def is_installed() -> bool:
    """Return True if :func:`tesseract` can run on this machine."""
    return shutil.which("tesseract") is not None


ENGINES: Registry[Callable[[], Ocr]] = Registry(
    "OCR engine",
    "ee_export.ocr",
    {"tesseract": tesseract},
    accepts=callable,
    expected="a function that opens an engine",
)
"""Functions that open an OCR engine, by name. An engine is a callable as in :attr:`ee_export.Page.ocr`.

:meth:`~ee_export.registry.Registry.register` adds one, and so does an entry point ``ee_export.ocr``."""

AUTO, NONE = "auto", "none"
"""Names of :func:`find_engine` that are no engine's."""


def find_engine(name: str = AUTO) -> Ocr | None:
    """Open an OCR engine.

    Args:
        name: one in :data:`ENGINES`. ``auto``: Tesseract if it is installed, else none. ``none``: none.

    Returns:
        The engine, or ``None`` if there is none.

    Raises:
        BadRequest: an unknown name, with all names and the nearest one.
        EeError: the engine cannot be opened.
    """
    if name == NONE or (name == AUTO and not is_installed()):
        return None
    if name == AUTO:
        return tesseract()
    if name not in ENGINES:
        require_known(name, (AUTO, NONE, *ENGINES.names()), ENGINES.kind)
    try:
        engine = ENGINES[name]()
    except EeError:
        raise
    except BaseException as error:
        if not is_fault(error):
            raise
        raise EeError(
            f"OCR engine '{name}': cannot be opened ({type(error).__name__}: {one_line(error, 300)}); mend it, or take another one"
        ) from error
    if not callable(engine):
        raise EeError(
            f"OCR engine '{name}': opens {shorten(repr(engine))}; expected a callable from an image to words and boxes"
        )
    return engine


def _scale_box(image: Image.Image, x0: int, y0: int, x1: int, y1: int) -> list[int]:
    """Pixels to 0–1000 of the image's width and height."""
    edges = (x0 / image.width, y0 / image.height, x1 / image.width, y1 / image.height)
    return [min(1000, max(0, round(1000 * edge))) for edge in edges]
