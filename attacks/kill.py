"""Kill ``tune``, ``calibrate`` and ``compile`` at random moments: the package must be whole after each.

    python -m attacks.kill PACKAGE DATA --moments 200 --seed 0

``PACKAGE`` is copied and stays as it is. ``DATA`` holds class folders of held-out pages. Without both, a small package is built.
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from ee_export.package.store import open_package
from ee_export.verify.replay import verify_package

_COMMAND = [sys.executable, "-c", "from ee_export.cli.main import main; main()"]
COMMANDS: dict[str, tuple[str, ...]] = {
    "tune": ("--operating-point", "killed"),
    "calibrate": (),
    "compile": ("--target", "cpu-int8", "--force"),
}


@dataclass(slots=True)
class Result:
    """Outcome of all kills: ``counts`` per command and ending, and a line for each fault."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Duration:
    """Seconds that a command takes, and seconds from the moment at which its staging folder appears to its end."""

    whole: float
    writing: float


def attack(package: Path, data: Path, moments: int, seed: int) -> Result:
    """Kill each command in turn, ``moments`` times in all, and check a copy of the package after each.

    Half of the moments are spread over a command's whole duration, half over the time in which it writes.
    """
    chance, result = random.Random(seed), Result()
    with tempfile.TemporaryDirectory(prefix="ee-kill-") as folder:
        copy = Path(folder) / "package.ee"
        shutil.copytree(package, copy)
        durations = {name: _whole_run(name, copy, data) for name in COMMANDS}
        turns = -(-moments // len(COMMANDS))
        for index in range(moments):
            name = list(COMMANDS)[index % len(COMMANDS)]
            share = (index // len(COMMANDS) + chance.random()) / turns
            ending = _killed_run(name, copy, data, durations[name], share, writing=bool(chance.getrandbits(1)))
            result.counts[f"{name}: {ending}"] += 1
            if ending == "a worker outlived it":
                result.faults.append(f"{name}, moment {index}: {ending}")
            result.faults += [f"{name} {ending}, moment {index}: {fault}" for fault in faults(copy, most_left=1)]
        for name in COMMANDS:
            _whole_run(name, copy, data)
        result.faults += [f"after whole runs: {fault}" for fault in faults(copy, most_left=0)]
    return result


def faults(package: Path, most_left: int) -> list[str]:
    """Reasons for which a package is not whole, and folders beside it beyond ``most_left`` that killed runs left."""
    faults = []
    try:
        opened = open_package(package)
        opened.check()
        for target in opened.manifest.targets:
            verify_package(opened, target)
    except Exception as error:
        faults.append(f"{type(error).__name__}: {error}")
    left = [path.name for path in package.parent.glob(f".{package.name}.*") if not path.name.endswith(".lock")]
    return faults + ([f"left behind: {', '.join(left)}"] if len(left) > most_left else [])


def _start(name: str, package: Path, data: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [*_COMMAND, name, str(package), str(data), *COMMANDS[name]]
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _whole_run(name: str, package: Path, data: Path) -> Duration:
    begin = time.monotonic()
    process = _start(name, package, data)
    staged = _staging_seen(process, package)
    _, errors = process.communicate()
    if process.returncode:
        raise click.ClickException(f"{name} fails by itself: {errors.decode(errors='replace')[-500:]}")
    end = time.monotonic()
    return Duration(end - begin, end - staged)


def _killed_run(name: str, package: Path, data: Path, duration: Duration, share: float, *, writing: bool) -> str:
    process = _start(name, package, data)
    if writing:
        _staging_seen(process, package)
        time.sleep(share * duration.writing)
    else:
        time.sleep(share * duration.whole)
    ended = process.poll() is not None
    process.kill()
    try:
        process.communicate(timeout=30)  # workers of the command hold its stderr
    except subprocess.TimeoutExpired:
        return "a worker outlived it"
    return "ended before" if ended else "killed while it wrote" if writing else "killed"


def _staging_seen(process: subprocess.Popen[bytes], package: Path) -> float:
    """Wait until a new staging folder appears or the process ends. Returns the time."""
    before = set(_stagings(package))
    while process.poll() is None and not set(_stagings(package)) - before:
        time.sleep(0.0005)
    return time.monotonic()


def _stagings(package: Path) -> list[str]:
    return [name for name in os.listdir(package.parent) if name.startswith(f".{package.name}.staging-")]


def _small(folder: Path) -> tuple[Path, Path]:
    """A package of the tests' tiny model, and the pages it was built with."""
    import torch

    from draw import draw_folder
    from ee_export.builder.build import build
    from ee_export.model import checkpoint
    from tests.conftest import random_model, tiny_config

    draw_folder(folder / "pages", 8, seed=7)
    tokenizer = checkpoint.train_tokenizer(iter([["page", "total"]]), 300)
    (folder / "tiny").mkdir()
    model = random_model(tiny_config(vocab_size=tokenizer.get_vocab_size()))
    checkpoint.save(folder / "tiny", model, tokenizer, torch.float32)
    build(folder / "tiny", folder / "pages", folder / "tiny.ee", ocr_ms=500.0, progress=lambda stage, done, total: None)
    return folder / "tiny.ee", folder / "pages"


@click.command(help=__doc__)
@click.argument("paths", type=click.Path(path_type=Path, exists=True), nargs=-1)
@click.option("--moments", default=200, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True)
def main(paths: Sequence[Path], moments: int, seed: int) -> None:
    if len(paths) not in (0, 2):
        raise click.UsageError("name a package and a folder of pages, or neither")
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ee-small-") as folder:
        package, data = paths or _small(Path(folder))
        result = attack(package, data, moments, seed)
    for ending, count in sorted(result.counts.items()):
        click.echo(f"{count:5}  {ending}")
    for fault in result.faults:
        click.echo(fault, err=True)
    minutes = (time.monotonic() - begin) / 60
    click.echo(f"{moments} moments, {len(result.faults)} faults, {minutes:.1f} minutes")
    sys.exit(1 if result.faults else 0)


if __name__ == "__main__":
    main()
