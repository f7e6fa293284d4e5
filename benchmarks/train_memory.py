"""Peak memory and speed of `ee-export train` over many pages: the tokenizer, the encoding and one epoch of a tiny trunk.

    python -m benchmarks.train_memory --pages 50000 [--layout tar]

A few hundred drawn pages are repeated, as hard links in class folders, or as rows of tar archives or of one Parquet file with a single
row group. Nothing is shared between repeated pages while they are read. Peak memory is the largest sum, sampled four times a second,
over the process and its workers, of their proportional set sizes: mapped files count as far as they are in memory, and what
processes share counts once.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

LAYOUTS = ("folders", "tar", "parquet")
_ROWS = 500
"""Rows of a Parquet file that are written together."""


@click.command()
@click.option("--pages", default=5000, show_default=True)
@click.option("--distinct", default=210, show_default=True, help="Drawn pages, which are repeated.")
@click.option("--layout", type=click.Choice(LAYOUTS), default="folders", show_default=True)
@click.option("--workers", type=int, help="As of `ee-export train`.")
@click.option("--scratch", type=click.Path(path_type=Path), help="Folder for pages and cache; default the system's.")
@click.option("--run", "source", type=click.Path(path_type=Path), hidden=True)
def main(
    pages: int, distinct: int, layout: str, workers: int | None, scratch: Path | None, source: Path | None
) -> None:
    """Print pages, peak memory, and pages a second of each stage."""
    if source is not None:
        print(json.dumps(train(source, source.with_name("out"), workers)))
        return
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        drawn = Path(folder) / "drawn"
        made = write_pages(drawn, Path(folder) / "pages", pages, distinct, layout)
        own = [sys.executable, "-m", "benchmarks.train_memory", "--run", str(made)]
        own += [] if workers is None else ["--workers", str(workers)]
        process = subprocess.Popen(own, stdout=subprocess.PIPE, text=True)
        peak, stages = watched(process)
    if process.returncode:
        sys.exit(process.returncode)
    print(
        f"{stages['machine']}, torch {stages['torch']}; {pages:,} pages ({distinct} drawn, repeated), {layout}, "
        f"{stages['workers']} workers that encode"
    )
    print(f"peak memory {peak / 2**20:,.0f} MB in all processes; the main one alone {stages['own_mb']:,.0f} MB")
    for name, (count, seconds) in stages["stages"].items():
        print(f"{name:22} {count:8,} in {seconds:7.1f} s   {count / max(seconds, 1e-9):8.1f} a second")


def write_pages(drawn: Path, out: Path, pages: int, distinct: int, layout: str) -> Path:
    """Draw pages and repeat them in a layout; the file or folder to train on."""
    from ee_export.draw import draw_folder

    classes = 7
    draw_folder(drawn, distinct // classes, seed=1)
    files = [path for path in sorted(drawn.rglob("*")) if path.suffix not in (".json", "")]
    out.mkdir()
    if layout == "folders":
        for number, file in repeated(files, pages):
            place = out / file.parent.name / f"{number:06}{file.suffix}"
            place.parent.mkdir(exist_ok=True)
            os.link(file, place)
            os.link(file.with_suffix(".json"), place.with_suffix(".json"))
        return out
    if layout == "tar":
        for number, file in repeated(files, pages):
            with tarfile.open(out / f"part-{number // 5000:03}.tar", "a") as archive:
                content = json.loads(file.with_suffix(".json").read_text()) | {"label": file.parent.name}
                add(archive, f"{number:06}{file.suffix}", file.read_bytes())
                add(archive, f"{number:06}.json", json.dumps(content).encode())
        return out
    write_parquet(out / "pages.parquet", files, pages)
    return out


def repeated(files: list[Path], pages: int) -> Iterator[tuple[int, Path]]:
    """A number and a drawn file for every page."""
    return ((number, files[number % len(files)]) for number in range(pages))


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    """Append a file to an archive."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def write_parquet(path: Path, files: list[Path], pages: int) -> None:
    """One file with one row group, which is the hardest to read in little memory."""
    import pyarrow
    from pyarrow import parquet

    words = pyarrow.list_(pyarrow.string()), pyarrow.list_(pyarrow.list_(pyarrow.int16()))
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    fields = [("image", image), ("label", pyarrow.string()), ("words", words[0]), ("boxes", words[1])]
    schema = pyarrow.schema(fields)
    with parquet.ParquetWriter(path, schema) as writer:
        rows = [row_of(file) for file in files]
        batches = (
            pyarrow.RecordBatch.from_pylist(
                [rows[number % len(rows)] for number in range(begin, min(begin + _ROWS, pages))], schema
            )
            for begin in range(0, pages, _ROWS)
        )
        for batch in batches:
            writer.write_batch(batch, row_group_size=pages)


def row_of(file: Path) -> dict[str, Any]:
    """A row of a Parquet file."""
    content = json.loads(file.with_suffix(".json").read_text())
    image = {"bytes": file.read_bytes(), "path": file.name}
    return {"image": image, "label": file.parent.name, "words": content["words"], "boxes": content["boxes"]}


def train(data: Path, out: Path, workers: int | None) -> dict[str, Any]:
    """Train in this process; seconds and counts of each stage."""
    import resource

    import torch

    from ee_export.data import stratified_split
    from ee_export.model import train as training
    from ee_export.model.device import Machine, find_device
    from ee_export.model.labelled.find import read_labelled
    from ee_export.model.loader import workers_to_encode
    from ee_export.model.recipe import Recipe
    from ee_export.runtime.costs import machine_name

    began = time.perf_counter()
    pages = read_labelled(data)
    parts = stratified_split(pages, {"train": 0.9, "val": 0.1}, 0)
    stages = {"list": (len(pages), time.perf_counter() - began)}
    model = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model |= {"coordinate_size": 6, "shape_size": 4, "patch_size": 32, "input_size": 224, "image_mode": "L"}
    model |= {"max_text_tokens": 256, "max_position_embeddings": 258, "exits": ["text"]}
    recipe = Recipe(model=model, epochs=1, vision_epochs=0, batch_size=32)
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


def watched(process: "subprocess.Popen[str]") -> tuple[int, dict[str, Any]]:
    """The largest memory of a process and its children in KiB, and what the process printed."""
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
    """A process and all below it."""
    try:
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:
        return []
    return [pid, *(below for child in children for below in tree(child))]


def proportional_kib(pid: int) -> int:
    """Proportional set size of a process, 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


if __name__ == "__main__":
    main()
