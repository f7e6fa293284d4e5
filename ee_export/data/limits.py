"""Limits on the size of one page, checked before memory is allocated for it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Largest sizes of a page's inputs. Larger pages are refused with :class:`~ee_export.errors.BadPage`.

    Args:
        max_pixels: width times height of an image. A0 at 300 dpi has 139 million pixels. A WebP file may have half as
            many.
        max_side: width or height of an image, in pixels. JPEG files have at most 65,535.
        max_json_bytes: size of a file of words and boxes.
    """

    max_pixels: int = 178_000_000
    max_side: int = 65_535
    max_json_bytes: int = 16_000_000


DEFAULT_LIMITS = Limits()
