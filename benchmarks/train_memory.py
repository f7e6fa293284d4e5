"""Peak memory and speed of `ee-export train` on many pages: tokenizer, encoding and one epoch of a tiny trunk.

    python -m benchmarks.train_memory --pages 50000 [--layout tar] [--scratch FOLDER]

Every page is drawn from its number: an A5 page of about 60 words at 70 dpi, some of them of its class. Pages lie in
class folders, in tar archives, or in one Parquet file with a single row group. Peak memory is the largest sum of the
proportional set sizes of the process and its workers, sampled four times a second. The parts of mapped files that are
in memory count, and shared memory counts once. With `--scratch`, class folders stay there, and a second run draws only
the missing pages.
"""

import io
import json
import random
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import click
from PIL import Image, ImageDraw, ImageFont

LAYOUTS = ("folders", "tar", "parquet")
CLASSES = ("form", "invoice", "letter", "memo", "paper", "receipt", "report")
_IN_ARCHIVE = 5000
"""Pages of a tar archive."""


@click.command()
@click.option("--pages", default=5000, show_default=True, help="Number of pages.")
@click.option("--layout", type=click.Choice(LAYOUTS), default="folders", show_default=True, help="Layout of the pages.")
@click.option("--workers", type=int, help="Option --workers of `ee-export train`.")
@click.option(
    "--scratch", type=click.Path(path_type=Path), help="Folder for pages and cache.  [default: a temporary folder]"
)
@click.option("--run", "source", type=click.Path(path_type=Path), hidden=True)
def main(pages: int, layout: str, workers: int | None, scratch: Path | None, source: Path | None) -> None:
    """Print pages, peak memory, and pages per second of each stage."""
    if source is not None:
        print(json.dumps(train(source, source.with_name("out"), workers)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        made = write_pages((scratch or Path(temporary)) / layout, pages, layout)
        own = [sys.executable, "-m", "benchmarks.train_memory", "--run", str(made)]
        own += [] if workers is None else ["--workers", str(workers)]
        process = subprocess.Popen(own, stdout=subprocess.PIPE, text=True)
        peak, stages = watch_memory(process)
    if process.returncode:
        sys.exit(process.returncode)
    print(
        f"{stages['machine']}, torch {stages['torch']}; {pages:,} pages, each one different, {layout}, "
        f"{stages['workers']} workers that encode"
    )
    print(f"peak memory {peak / 2**20:,.0f} MB in all processes; the main one alone {stages['own_mb']:,.0f} MB")
    for name, (count, seconds) in stages["stages"].items():
        print(f"{name:22} {count:8,} in {seconds:7.1f} s   {count / max(seconds, 1e-9):8.1f} a second")


def write_pages(out: Path, pages: int, layout: str) -> Path:
    """Draw pages in a layout, and return the folder to train on."""
    out.mkdir(parents=True, exist_ok=True)
    if layout == "folders":
        with ProcessPoolExecutor() as processes:
            for _ in processes.map(partial(write_page, out), range(pages), chunksize=100):
                pass
    elif layout == "tar":
        for begin in range(0, pages, _IN_ARCHIVE):
            with tarfile.open(out / f"part-{begin // _IN_ARCHIVE:03}.tar", "w") as archive:
                for number in range(begin, min(begin + _IN_ARCHIVE, pages)):
                    label, image, content = draw_page(number)
                    add(archive, f"{number:06}.jpg", image)
                    add(archive, f"{number:06}.json", json.dumps(content | {"label": label}).encode())
    else:
        write_parquet(out / "pages.parquet", pages)
    return out


def write_page(out: Path, number: int, classes: Sequence[str] = CLASSES) -> None:
    """Write the two files of a page into its class folder, the words last, if they are missing."""
    place = out / classes[number % len(classes)] / f"{number:06}.json"
    if not place.exists():
        _, image, content = draw_page(number, classes)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.with_suffix(".jpg").write_bytes(image)
        place.write_text(json.dumps(content))


@cache
def _letters() -> tuple[ImageFont.FreeTypeFont | ImageFont.ImageFont, tuple[str, ...]]:
    """Return the font, and the words of all pages."""
    from faker import Faker

    faker = Faker("en_US")
    faker.seed_instance(1)
    words = {*(faker.last_name() for _ in range(2000)), *(faker.city() for _ in range(2000)), *faker.words(400)}
    return ImageFont.load_default(11), tuple(sorted(words))


def draw_page(number: int, classes: Sequence[str] = CLASSES) -> tuple[str, bytes, dict[str, Any]]:
    """Draw a page by its number: label, JPEG file, and words with boxes. Every tenth word is one of its class."""
    font, common = _letters()
    label = classes[number % len(classes)]
    rng = random.Random(number)
    width, height = rng.randint(380, 440), rng.randint(560, 620)
    image = Image.new("L", (width, height), rng.randint(225, 255))
    pen = ImageDraw.Draw(image)
    words, boxes = [], []
    x, y = 20, 20
    for _ in range(rng.randint(30, 90)):
        word = f"{label}{rng.randrange(50)}" if rng.random() < 0.1 else rng.choice(common)
        wide = int(font.getlength(word))
        if x + wide > width - 20:
            x, y = 20, y + rng.randint(14, 20)
        if y > height - 30:
            break
        pen.text((x, y), word, fill=rng.randint(0, 60), font=font)
        words.append(word)
        boxes.append([x * 1000 // width, y * 1000 // height, (x + wide) * 1000 // width, (y + 12) * 1000 // height])
        x += wide + 5
    file = io.BytesIO()
    image.save(file, "JPEG", quality=rng.randint(60, 85))
    return label, file.getvalue(), {"words": words, "boxes": boxes}


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    """Append a file to an archive."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def write_parquet(path: Path, pages: int) -> None:
    """Write one file with one row group, which needs the most memory to read."""
    import pyarrow
    from pyarrow import parquet

    words = pyarrow.list_(pyarrow.string()), pyarrow.list_(pyarrow.list_(pyarrow.int16()))
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    fields = [("image", image), ("label", pyarrow.string()), ("words", words[0]), ("boxes", words[1])]
    schema = pyarrow.schema(fields)
    with parquet.ParquetWriter(path, schema) as writer:
        rows = (row_of(number) for number in range(pages))
        writer.write_table(pyarrow.Table.from_pylist(list(rows), schema), row_group_size=pages)


def row_of(number: int) -> dict[str, Any]:
    """Make a row of a Parquet file."""
    label, image, content = draw_page(number)
    return {"image": {"bytes": image, "path": f"{number:06}.jpg"}, "label": label, **content}


def train(data: Path, out: Path, workers: int | None) -> dict[str, Any]:
    """Train in this process, and return seconds and counts of each stage."""
    import resource

    import torch

    from ee_export.data.dataset import split_stratified
    from ee_export.data.labelled.find import read_labelled
    from ee_export.model import train as training
    from ee_export.model.device import Machine, find_device
    from ee_export.model.loader import workers_to_encode
    from ee_export.model.recipe import TrainingRecipe
    from ee_export.runtime.machine import machine_name

    began = time.perf_counter()
    pages = read_labelled(data)
    parts = split_stratified(pages, {"train": 0.9, "val": 0.1}, 0)
    stages = {"list": (len(pages), time.perf_counter() - began)}
    model = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model |= {"coordinate_size": 6, "shape_size": 4, "patch_size": 32, "input_size": 224, "image_mode": "L"}
    model |= {"max_text_tokens": 256, "max_position_embeddings": 258, "exits": ["text"]}
    recipe = TrainingRecipe(model=model, epochs=1, vision_epochs=0, batch_size=32)
    last = {"begin": time.perf_counter()}

    def progress(stage: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if stage not in stages:
            name = "tokenizer and digest" if stage == "encode" else ""
            if name:
                stages[name] = (len(pages), now - last["begin"])
            last[stage] = now
        stages[stage] = (done * (recipe.batch_size if stage == "train" else 1), now - last[stage])

    training.train(
        parts["train"], parts["val"], out, recipe, None, progress, False, machine=Machine(find_device("cpu"), workers)
    )
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    count = workers_to_encode(workers, len(parts["train"]))
    return {"stages": stages, "own_mb": own, "workers": count, "torch": torch.__version__, "machine": machine_name()}


def watch_memory(process: "subprocess.Popen[str]") -> tuple[int, dict[str, Any]]:
    """Return the largest memory of a process and its children in KiB, and the output of the process."""
    peak, over = 0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not over.wait(0.25):
            peak = max(peak, sum(map(proportional_kib, tree(process.pid))))

    sampler = threading.Thread(target=sample)
    sampler.start()
    printed, _ = process.communicate()
    over.set()
    sampler.join()
    return peak * 1024, json.loads(printed) if printed else {}


def tree(pid: int) -> list[int]:
    """List a process and all its descendants."""
    try:
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:
        return []
    return [pid, *(descendant for child in children for descendant in tree(child))]


def proportional_kib(pid: int) -> int:
    """Read the proportional set size of a process, or 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


if __name__ == "__main__":
    main()
