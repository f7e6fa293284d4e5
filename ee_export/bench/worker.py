"""`python -m ee_export.bench.worker`: one contender in a process of its own; JSON lines in, JSON lines out.

A process each, so that no contender's threads spin while another is measured, and memory can be told apart.
"""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ee_export.bench.load import memory_mb
from ee_export.bench.peers import PEERS, Subject
from ee_export.errors import EeError
from ee_export.ocr import tesseract
from ee_export.page import Page, read_page

CHAIN = "chain"

Answer = Callable[[Page], dict[str, Any]]
"""Classifies a page; says ``label``, and ``exit`` and ``stages_ms`` where it has them."""


def main() -> None:
    """Say that it is ready, then answer one page a line; an empty line ends it with what memory it took."""
    name, *rest = sys.argv[1:]
    subject = Subject(**json.loads(rest[0]))
    before = memory_mb("VmRSS:")
    started = time.perf_counter()
    try:
        answer, size = _chain(subject) if name == CHAIN else _peer(name, subject)
    except (EeError, ImportError) as error:
        _say({"error": str(error)})
        return
    _say({"load_s": time.perf_counter() - started, "size_mb": size / 1e6})
    for line in sys.stdin:
        if not line.strip():
            break
        asked = json.loads(line)
        page = _given(Path(asked["path"]), ocr=asked["ocr"])
        started = time.perf_counter()
        found = answer(page)
        _say({"ms": (time.perf_counter() - started) * 1e3, **found})
    _say({"rss_mb": memory_mb("VmRSS:") - before, "peak_mb": memory_mb("VmHWM:") - before})


def _given(path: Path, *, ocr: bool) -> Page:
    """The bytes of a page, and its words, or an engine that reads them: what a service has when its clock starts."""
    page = read_page(path)
    if page.image is not None:
        page = replace(page, image=path.read_bytes())
    return replace(page, words=None, boxes=None, ocr=tesseract()) if ocr else page


def _chain(subject: Subject) -> tuple[Answer, int]:
    from ee_export.runtime.chain import load_package

    package = subject.opened()
    chain = load_package(package, subject.target, subject.operating_point, subject.threads)

    def answer(page: Page) -> dict[str, Any]:
        found = chain.predict(page)
        stages: dict[str, float] = defaultdict(float)
        for step in found.trace:
            stages[step.name] += step.duration_ms  # OCR may have run strip by strip
        stages["decode, encode, decide"] = found.latency_ms - sum(stages.values())
        return {"label": found.label, "exit": found.exit, "stages_ms": stages}

    return answer, sum(entry.size for entry in package.manifest.files.values())


def _peer(name: str, subject: Subject) -> tuple[Answer, int]:
    from tokenizers import Tokenizer

    from ee_export.encode import Encoder
    from ee_export.package import TOKENIZER

    package = subject.opened()
    manifest = package.manifest
    encoder = Encoder(manifest.encoding, Tokenizer.from_buffer(package.read(TOKENIZER)))
    run, size = PEERS[name](subject)

    def answer(page: Page) -> dict[str, Any]:
        begin = time.perf_counter()
        image, words, boxes = encoder.contents(page, manifest.inputs)
        read = time.perf_counter()
        arrays = {**encoder.image(image), **encoder.text(words, boxes)}
        encoded = time.perf_counter()
        label = manifest.labels[int(run(arrays)[0].argmax())]
        stages = {"decode, OCR": read - begin, "encode": encoded - read, "model": time.perf_counter() - encoded}
        return {"label": label, "stages_ms": {stage: seconds * 1e3 for stage, seconds in stages.items()}}

    return answer, size


def _say(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
