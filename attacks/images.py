"""Image files cut short, and with bytes changed, of every format and mode that Pillow writes here."""

import random
from collections.abc import Callable
from pathlib import Path

from attacks.family import Attack, Family, Ground, Wrong
from attacks.image_seeds import png, png_chunks, seeds
from attacks.packages import check_answer
from attacks.pages import drawn_page, read_nothing, words_of_page
from ee_export import Answer, Page
from ee_export.errors import EeError


def cut(ground: Ground, index: int) -> Attack:
    """An image file that ends early, anywhere, most often within its header or just before its end."""
    rng, (name, data) = ground.rng("images-cut", index), seeds()[index % len(seeds())]
    end = rng.choice((rng.randrange(len(data)), rng.randrange(min(len(data), 300)), len(data) - rng.randint(1, 20)))
    return Attack(
        f"{name}: {max(0, end)} of {len(data)} bytes", lambda: predict_odd(ground, data[: max(0, end)], index)
    )


def flip(ground: Ground, index: int) -> Attack:
    """An image file with one to eight changed bytes. Every second PNG file has matching checksums."""
    rng, (name, data) = ground.rng("images-flip", index), seeds()[index % len(seeds())]
    resealed = data.startswith(b"\x89PNG") and rng.random() < 0.5
    if resealed:
        chunks = png_chunks(data)
        position = rng.randrange(len(chunks) - 1)
        chunks[position] = (chunks[position][0], _flip(chunks[position][1], rng))
        changed = png(chunks)
    else:
        changed = _flip(data, rng)
    what = f"{name}{', checksums fit' if resealed else ''}"
    return Attack(what, lambda: predict_odd(ground, changed, index))


def predict_odd(ground: Ground, image: bytes, index: int) -> None:
    """Predict with an odd page, alone and every tenth time among good ones, which must be answered all the same."""
    chain = ground.chain
    odd = Page(image, ocr=read_nothing, name="an odd page")
    try:
        check_answer(chain, chain.predict(odd))
    finally:
        if index % 10 == 0:
            predict_among(ground, odd)


def predict_among(ground: Ground, odd: Page) -> None:
    """Predict an odd page between two good ones: three answers in order, and both good ones right."""
    chain = ground.chain
    good = Page(drawn_page(), *words_of_page(), name="a good page")
    expected = chain.predict(good)
    answers = list(chain.predict_many([good, odd, good], batch=dict.fromkeys(chain.exits, 2)))
    if len(answers) != 3:
        raise Wrong(f"predict_many gave {len(answers)} answers of 3 pages")
    for answer in (answers[0], answers[2]):
        if isinstance(answer, EeError):
            raise Wrong(f"a good page beside an odd one got an error: {answer}")
        if not answers_agree(answer, expected):
            raise Wrong("a good page beside an odd one got another answer than alone")


def answers_agree(answer: Answer, expected: Answer) -> bool:
    """True if two answers have the same label and exit, and probabilities that differ by less than 0.001."""
    near = all(abs(value - expected.probabilities[name]) < 1e-3 for name, value in answer.probabilities.items())
    return answer.label == expected.label and answer.exit == expected.exit and near


def _flip(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    if not out:
        return bytes(out)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        index = rng.randrange(min(len(out), 200)) if rng.random() < 0.5 else rng.randrange(len(out))
        out[index] = rng.choice((out[index] ^ (1 << rng.randrange(8)), rng.randrange(256), 0, 0xFF))
    return bytes(out)


def _write_fixed(number: int) -> Callable[[Path], int]:
    def count(package: Path) -> int:
        return number

    return count


FAMILIES = (
    Family("images-cut", _write_fixed(3000), cut, least=60, timeout_s=30.0),
    Family("images-flip", _write_fixed(6000), flip, least=60, timeout_s=30.0),
)
