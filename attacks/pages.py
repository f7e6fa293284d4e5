"""Good pages to compare odd ones with, drawn here with nothing but Pillow."""

from functools import cache

from PIL import Image, ImageDraw, ImageFont

LINES = (
    "CORNER MARKET",
    "12 Example Street",
    "Milk 1L   1.29",
    "Bread   2.49",
    "Coffee   6.75",
    "TOTAL   10.53",
    "Thank you",
)


@cache
def drawn_page(width: int = 240, height: int = 320) -> Image.Image:
    """A small receipt in mode ``L``, dark on grey paper. All callers share the image, so do not change it."""
    image = Image.new("L", (width, height), 235)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=max(8, width // 14))
    for index, line in enumerate(LINES):
        draw.text((width // 12, height // 12 + index * height // 9), line, fill=50, font=font)
    return image


def words_of_page() -> tuple[list[str], list[list[int]]]:
    """The words of the receipt, and their boxes in 0–1000."""
    words: list[str] = []
    boxes: list[list[int]] = []
    for index, line in enumerate(LINES):
        top = 83 + index * 111
        for place, word in enumerate(line.split()):
            words.append(word)
            boxes.append([83 + 250 * place, top, 83 + 250 * place + 200, top + 60])
    return words, boxes


def read_nothing(image: Image.Image) -> tuple[list[str], list[list[int]]]:
    """An OCR engine that reads the same two words on every page, in no time."""
    return ["TOTAL", "10.53"], [[83, 600, 283, 660], [333, 600, 533, 660]]
