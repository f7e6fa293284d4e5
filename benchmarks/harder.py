"""A harder form of labelled pages: degraded OCR, rotated and noisy images, few training pages a class.

    python benchmarks/harder.py ../shared/data/pages build/harder

On clean pages a cheap exit is about as accurate as `final`, so placements, heads and strategies do not differ. The
generator of each page is seeded with its name, so the copy is the same on every machine.
"""

import hashlib
import json
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageFilter
from rich.progress import track

CONFUSED = {
    "0": "O", "O": "0", "1": "l", "l": "1", "I": "l", "5": "S", "S": "5", "8": "B", "B": "8", "e": "c", "c": "e",
    "o": "a", "a": "o", "n": "u", "u": "n", "m": "rn", "t": "f", "f": "t", "i": "j", "g": "q", "h": "b", "r": "v",
}  # fmt: skip
"""Letters that look alike to an OCR engine on a bad scan."""


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--train-pages", default=20, show_default=True, help="Training pages of each class that are kept.")
@click.option("--drop", default=0.4, show_default=True, help="Share of words that are lost.")
@click.option("--confuse", default=0.2, show_default=True, help="Share of letters that are misread.")
@click.option("--degrees", default=8.0, show_default=True, help="Largest rotation of an image.")
@click.option("--noise", default=40.0, show_default=True, help="Standard deviation of the noise, grey levels of 255.")
def main(data: Path, out: Path, train_pages: int, drop: float, confuse: float, degrees: float, noise: float) -> None:
    """Write a harder copy of DATA (train, val and test with class folders) to OUT."""
    pages = []
    for part in ("train", "val", "test"):
        for folder in sorted(path for path in (data / part).iterdir() if path.is_dir()):
            images = sorted(folder.glob("*.jpg"), key=lambda path: hashlib.sha256(path.name.encode()).digest())
            pages += [(part, folder.name, path) for path in (images[:train_pages] if part == "train" else images)]
    for part, label, path in track(pages, "harder"):
        rng = np.random.default_rng(list(hashlib.sha256(path.name.encode()).digest()[:8]))
        folder = out / part / label
        folder.mkdir(parents=True, exist_ok=True)
        worse_image(Image.open(path).convert("L"), rng, degrees, noise).save(folder / path.name, quality=80)
        text = json.loads(path.with_suffix(".json").read_text())
        kept = [index for index in range(len(text["words"])) if rng.random() >= drop]
        words = [worse_word(text["words"][index], rng, confuse) for index in kept]
        found_text = {"words": words, "boxes": [text["boxes"][index] for index in kept]}
        (folder / path.with_suffix(".json").name).write_text(json.dumps(found_text))
    click.echo(f"{len(pages)} pages in {out}")


def worse_image(image: Image.Image, rng: np.random.Generator, degrees: float, noise: float) -> Image.Image:
    """Rotate, blur, shift, pale and add noise to an image."""
    image = image.rotate(float(rng.uniform(-degrees, degrees)), fillcolor=255, resample=Image.Resampling.BILINEAR)
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 2.5))))
    pixels = np.asarray(image, np.float32) * rng.uniform(0.5, 1.0) + rng.uniform(0, 90)
    pixels = np.roll(pixels, rng.integers(-60, 60, 2), axis=(0, 1))
    return Image.fromarray((pixels + rng.normal(0, noise, pixels.shape)).clip(0, 255).astype(np.uint8))


def worse_word(word: str, rng: np.random.Generator, confuse: float) -> str:
    """Replace some letters by look-alikes."""
    return "".join(CONFUSED.get(letter, letter) if rng.random() < confuse else letter for letter in word)


if __name__ == "__main__":
    main()
