"""Any exception of a page becomes that page's answer: an error that names the page."""

import logging
import traceback

from ee_export.data.page import Page
from ee_export.errors import BadLogits, BadPage, BadText, EeError, unexpected

_log = logging.getLogger("ee_export")


def name_page(page: object, place: int) -> str:
    """A page's name, or its place in the input where it has none."""
    return page.name if isinstance(page, Page) else f"page {place} of the input, counted from 0"


def require_page(page: object, place: int) -> Page:
    """The page itself; raises BadPage for an object that is none."""
    if isinstance(page, Page):
        return page
    raise BadPage(
        f"{name_page(page, place)}: a {type(page).__name__}, not a Page; make one with ee_export.Page(…) or read_page(…)"
    )


def page_error(name: str, error: Exception) -> EeError:
    """The error that a page gets for an exception: itself where it is understood, else one that names the page."""
    if isinstance(error, BadLogits | BadText):
        return type(error)(f"{name}: {error}")
    if isinstance(error, EeError):
        return error
    if isinstance(error, MemoryError):
        result: EeError = BadPage(
            f"{name}: there is not enough memory for this page; scale it down, or lower Limits(max_pixels=…)"
        )
    else:
        result = unexpected(name, error)
    _log.debug("%s", result, exc_info=error)
    result.__cause__ = error
    return result


def as_answer(name: str, error: Exception) -> EeError:
    """As :func:`page_error`, for an error that is kept. Its traceback becomes a note: frames keep images and other pages alive."""
    result = page_error(name, error)
    if result is not error:
        error.add_note("".join(traceback.format_tb(error.__traceback__)))
    kept: BaseException | None = error
    cleared: list[BaseException] = []
    while kept is not None and not any(kept is each for each in cleared):  # a chain of causes can be a circle
        kept.__traceback__ = None
        cleared.append(kept)
        kept = kept.__cause__ or kept.__context__
    return result
