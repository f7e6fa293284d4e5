"""Threads that predict while other threads load damaged, intact and changed packages: no answer may be another package's.

``python -m attacks.threads PACKAGE --pages FOLDER [--predictions 100000]``
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import ee_export
from ee_export.data.encode import Arrays
from ee_export.data.image import IMAGE_SUFFIXES
from ee_export.data.page import read_page
from ee_export.errors import EeError
from ee_export.package.manifest import OperatingPoint
from ee_export.runtime.chain import Chain
from ee_export.runtime.graph import external_weights

PREDICTORS = 16
FATAL = ("wrong answers", "damaged packages accepted", "intact packages refused", "untyped errors")
"""Counts that must be 0."""

_TARGET = "cpu-fp32"
_WHOLE = 20  # one prediction in this many runs all segments; the others exit at the first exit, which costs a tenth
_TOLERANCE = 1e-5
_KEPT_ERRORS = 8
_PAUSE_S = (0.02, 1.5)  # seconds between two swaps; a load takes some tenths of a second

Answers = list[tuple[np.ndarray, np.ndarray]]
"""Per page, the probabilities of the first exit and those of the last."""


class Scene:
    """The packages, the loaded chains, and the counts of outcomes.

    ``intact.ee`` never changes. ``damaged.ee`` has other weights than its manifest states. ``current.ee`` is a link to
    ``intact.ee`` or ``changed.ee``, which has other weights and right hashes. A thread changes its target all the time. In ``torn.ee`` the
    weights are exchanged all the time, so that each second hash is right.
    """

    def __init__(self, package: Path, pages: Sequence[Arrays], folder: Path, predictions: int) -> None:
        self.folder = folder
        self.pages = pages
        self.counts: Counter[str] = Counter(dict.fromkeys((*FATAL, "predictions"), 0))
        self.ended = threading.Event()
        self._left = itertools.count(predictions, -1)
        self._lock = threading.Lock()
        for name in ("intact", "damaged", "changed", "torn"):
            shutil.copytree(package, folder / f"{name}.ee")
        for name in ("damaged", "changed"):
            negate_heads(folder / f"{name}.ee" / _TARGET / "weights.bin")
        _seal(folder / "changed.ee")
        (folder / "current.ee").symlink_to("intact.ee")
        shutil.copy(folder / "damaged.ee" / _TARGET / "weights.bin", folder / "other")
        self.answers = {name: self._answers(name) for name in ("intact", "changed")}
        for first, last in zip(self.answers["intact"], self.answers["changed"], strict=True):
            assert not any(np.allclose(a, b, atol=10 * _TOLERANCE) for a, b in zip(first, last, strict=True))
        self.chains = [(self.load("intact", random.Random(0)), "intact")]

    def _answers(self, name: str) -> Answers:
        chain = self.load(name, random.Random(0))
        return [(_probabilities(at_first_exit(chain), page), _probabilities(chain, page)) for page in self.pages]

    def load(self, name: str, choice: random.Random) -> Chain:
        """A chain. The thread counts differ, so that the sessions to share are now open in this process and now not."""
        threads, in_memory = choice.randint(1, 4), choice.random() < 0.3
        return ee_export.load(
            self.folder / f"{name}.ee", _TARGET, "full", threads=threads, one_pool=True, in_memory=in_memory
        )

    def count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def take_one(self) -> bool:
        """Count down the remaining predictions. Returns False if none remains."""
        with self._lock:
            return next(self._left) > 0

    def put(self, chain: Chain, name: str) -> None:
        """Let the predicting threads use a chain. Its answers must be those of the package of that name."""
        with self._lock:
            self.chains = [*self.chains[-2:], (chain, name)]


def attack(package: Path, pages: Sequence[Arrays], predictions: int, seed: int = 0) -> Counter[str]:
    """Predict in 16 threads while four others load packages. Returns the counts of outcomes, see :data:`FATAL`.

    Args:
        package: one with a target cpu-fp32 whose weights lie in ``weights.bin``.
        pages: encoded inputs, one page each.
        predictions: total number of predictions.
        seed: seed of the pages and chains that the threads choose.
    """
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(package, pages, Path(folder), predictions)
        works = (load_intact, load_damaged, load_current, load_torn, turn_current, exchange_weights)
        predicting = [_thread(scene, predict, seed + index) for index in range(PREDICTORS)]
        others = [_thread(scene, work, seed + index) for index, work in enumerate(works)]
        for thread in (*others, *predicting):
            thread.start()
        for thread in predicting:
            thread.join()
        scene.ended.set()
        for thread in others:
            thread.join()
        return scene.counts


def _thread(scene: Scene, work: Callable[[Scene, random.Random], None], seed: int) -> threading.Thread:
    def guarded() -> None:
        try:
            work(scene, random.Random(seed))
        except Exception as error:
            scene.count("untyped errors")
            print(f"{type(error).__name__}: {error}", file=sys.stderr)

    return threading.Thread(target=guarded)


def predict(scene: Scene, choice: random.Random) -> None:
    """Predict pages with whatever chains are loaded, and compare."""
    while scene.take_one():
        chain, name = choice.choice(scene.chains)
        place = choice.randrange(len(scene.pages))
        whole = choice.randrange(_WHOLE) == 0
        given = _probabilities(chain if whole else at_first_exit(chain), scene.pages[place])
        scene.count("predictions")
        if not np.allclose(given, scene.answers[name][place][whole], atol=_TOLERANCE):
            scene.count("wrong answers")


def load_intact(scene: Scene, choice: random.Random) -> None:
    while not scene.ended.is_set():
        try:
            scene.put(scene.load("intact", choice), "intact")
            scene.count("intact packages loaded")
        except EeError as error:
            scene.count("intact packages refused")
            print(error, file=sys.stderr)


def load_damaged(scene: Scene, choice: random.Random) -> None:
    """The errors are kept, as a notebook or a log does: their tracebacks hold whatever the load had made."""
    kept: list[EeError] = []
    while not scene.ended.is_set():
        try:
            scene.load("damaged", choice)
            scene.count("damaged packages accepted")
        except EeError as error:
            kept = [*kept[-_KEPT_ERRORS:], error]
            scene.count("damaged packages refused")


def load_current(scene: Scene, choice: random.Random) -> None:
    """The chain belongs completely to one package. Its first answer identifies the package, and later answers must
    match it."""
    while not scene.ended.is_set():
        try:
            chain = scene.load("current", choice)
        except EeError:
            scene.count("swapped packages refused")
            continue
        first = _probabilities(at_first_exit(chain), scene.pages[0])
        names = [name for name, known in scene.answers.items() if np.allclose(first, known[0][0], atol=_TOLERANCE)]
        scene.count("swapped packages loaded" if names else "wrong answers")
        for name in names:
            scene.put(chain, name)


def load_torn(scene: Scene, choice: random.Random) -> None:
    while not scene.ended.is_set():
        try:
            scene.put(scene.load("torn", choice), "intact")
            scene.count("torn packages loaded while they were whole")
        except EeError:
            scene.count("torn packages refused")


def turn_current(scene: Scene, choice: random.Random) -> None:
    for name in itertools.cycle(("changed.ee", "intact.ee")):
        if scene.ended.wait(choice.uniform(*_PAUSE_S)):
            return
        link = scene.folder / "link"
        link.symlink_to(name)
        link.replace(scene.folder / "current.ee")


def exchange_weights(scene: Scene, choice: random.Random) -> None:
    weights, other, aside = (
        scene.folder / "torn.ee" / _TARGET / "weights.bin",
        scene.folder / "other",
        scene.folder / "aside",
    )
    while not scene.ended.wait(choice.uniform(*_PAUSE_S)):
        aside.hardlink_to(weights)
        other.replace(weights)
        aside.replace(other)


def at_first_exit(chain: Chain) -> Chain:
    """The same sessions. Each page exits at the first exit."""
    first, *others = chain.exits[:-1]
    return chain.with_point(OperatingPoint("max_probability", {first: 0.0, **dict.fromkeys(others)}))


def negate_heads(weights: Path) -> None:
    """Other weights of the same size: the last matrix of each exit's head is negated, so that every answer changes."""
    contents = bytearray(weights.read_bytes())
    for graph in sorted(weights.parent.glob("*.onnx")):
        last = external_weights(graph.read_bytes(), str(graph))[-1]
        assert last.length is not None
        values = np.frombuffer(contents, np.float32, last.length // 4, last.offset)
        values[:] = -values
    weights.write_bytes(contents)


def read_pages(chain: Chain, folder: Path, most: int) -> list[Arrays]:
    """Encoded pages of a folder, the first ``most`` by name. A page without words is read as an empty one."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return [chain.encode([read_page(path, lambda image: ([], []))]) for path in paths[:: max(1, len(paths) // most)]]


def _probabilities(chain: Chain, page: Arrays) -> np.ndarray:
    return np.array(list(chain.predict_encoded(page).probabilities.values()))


def _seal(package: Path) -> None:
    """Hash a package's files again."""
    path = package / "manifest.json"
    manifest = json.loads(path.read_bytes())
    for name, entry in manifest["files"].items():
        entry["sha256"] = hashlib.sha256((package / name).read_bytes()).hexdigest()
    path.write_text(json.dumps(manifest))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path)
    parser.add_argument("--pages", type=Path, required=True, help="folder of page images")
    parser.add_argument("--predictions", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pages = read_pages(ee_export.load(arguments.package, _TARGET, threads=1), arguments.pages, 32)
    begin = time.perf_counter()
    counts = attack(arguments.package, pages, arguments.predictions, arguments.seed)
    for what, number in sorted(counts.items()):
        print(f"{number:>8} {what}")
    print(f"{time.perf_counter() - begin:>8.0f} seconds")
    return int(any(counts[what] for what in FATAL))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
