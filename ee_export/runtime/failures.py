"""Turn any exception of a page into that page's answer, an error that names the page."""

import logging
import traceback

from ee_export.data.page import Page
from ee_export.errors import BadLogits, BadPage, BadText, EeError, wrap_unexpected

_log = logging.getLogger("ee_export")


def name_page(page: object, index: int) -> str:
    """A page's name, or its index in the input if it has none."""
    return page.name if isinstance(page, Page) else f"page {index} of the input, counted from 0"


def require_page(page: object, index: int) -> Page:
    """The page itself. Raises BadPage for an object that is no page."""
    if isinstance(page, Page):
        return page
    raise BadPage(
        f"{name_page(page, index)}: a {type(page).__name__}, not a Page; make one with ee_export.Page(…) or read_page(…)"
    )


def page_error(name: str, error: Exception) -> EeError:
    """The error of a page for an exception: the exception itself if it is an EeError, else one that names the page."""
    if isinstance(error, BadLogits | BadText):
        return type(error)(f"{name}: {error}")
    if isinstance(error, EeError):
        return error
    if isinstance(error, MemoryError):
        result: EeError = BadPage(
            f"{name}: there is not enough memory for this page; scale it down, or lower Limits(max_pixels=…)"
        )
    else:
        result = wrap_unexpected(name, error)
    _log.debug("%s", result, exc_info=error)
    result.__cause__ = error
    return result


def as_answer(name: str, error: Exception) -> EeError:
    """The error of :func:`page_error` as an answer. Its traceback becomes a note, because frames keep images and pages alive."""
    result = page_error(name, error)
    if result is not error:
        error.add_note("".join(traceback.format_tb(error.__traceback__)))
    kept: BaseException | None = error
    cleared: list[BaseException] = []
    while kept is not None and not any(kept is other for other in cleared):  # a chain of causes can be a circle
        kept.__traceback__ = None
        cleared.append(kept)
        kept = kept.__cause__ or kept.__context__
    return result
