"""`python -m ee_export.bench.worker`: one contender in a process of its own; JSON lines in, JSON lines out.

A process each, so that no contender's threads spin while another is measured, and memory can be told apart.
"""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from ee_export.bench.load import memory_mb
from ee_export.bench.peers import CHAIN, PEERS, Subject
from ee_export.bench.stages import ENCODE, MODEL, OCR, READ, REST
from ee_export.data.encode import Encoder
from ee_export.data.ocr import tesseract
from ee_export.data.page import Page, read_page
from ee_export.errors import EeError

_METHODS = ((Page, "reduced", READ), (Page, "decoded", READ), (Encoder, "images", ENCODE), (Encoder, "text", ENCODE))

Stages = defaultdict[str, float]
"""Milliseconds by stage of the page at hand."""
Answer = Callable[[Page, str | None], dict[str, Any]]
"""Classifies a page, which leaves at an exit where one is named; says ``label``, and ``exit`` where it has one."""


def main() -> None:
    """Say that it is ready, then answer one page a line; an empty line ends it with what memory it took."""
    name, *rest = sys.argv[1:]
    subject = Subject(**json.loads(rest[0]))
    stages: Stages = defaultdict(float)
    # Of the classes: this process does nothing else, and no runtime has hooks for it.
    for owner, method, stage in _METHODS:
        setattr(owner, method, _timed(stages, stage, getattr(owner, method)))
    before = memory_mb("VmRSS:")
    started = time.perf_counter()
    try:
        answer, size = _chain(subject, stages) if name == CHAIN else _peer(name, subject, stages)
    except EeError as error:
        _say({"error": str(error)})
        return
    except ImportError as error:
        _say({"error": f"needs {error.name}: `pip install 'ee_export[export]'`"})
        return
    _say({"load_s": time.perf_counter() - started, "size_mb": size / 1e6})
    for line in sys.stdin:
        if not line.strip():
            break
        asked = json.loads(line)
        page = _given(Path(asked["path"]), ocr=asked["ocr"])
        stages.clear()
        started = time.perf_counter()
        found = answer(page, asked["exit"])
        taken = (time.perf_counter() - started) * 1e3
        _say({"ms": taken, **found, "stages_ms": {**stages, REST: taken - sum(stages.values())}})
    _say({"rss_mb": memory_mb("VmRSS:") - before, "peak_mb": memory_mb("VmHWM:") - before})


def _given(path: Path, *, ocr: bool) -> Page:
    """The bytes of a page, and its words, or an engine that reads them: what a service has when its clock starts."""
    page = read_page(path)
    if page.image is not None:
        page = replace(page, image=path.read_bytes())
    return replace(page, words=None, boxes=None, ocr=tesseract()) if ocr else page


def _timed(stages: Stages, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function; what it takes is added to a stage."""

    def timed(*arguments: Any) -> Any:
        started = time.perf_counter()
        found = function(*arguments)
        stages[stage] += (time.perf_counter() - started) * 1e3
        return found

    return timed


def _chain(subject: Subject, stages: Stages) -> tuple[Answer, int]:
    from ee_export.runtime.chain import Chain
    from ee_export.runtime.load import load_package
    from ee_export.runtime.plan import make_exit_point

    package = subject.opened()
    chain = load_package(package, subject.target, subject.operating_point, subject.threads, one_pool=True)

    @cache  # at the first page that asks: loading is timed, and most contenders are never told where to leave
    def at(exit_name: str | None) -> Chain:
        return chain if exit_name is None else chain.with_point(make_exit_point(chain.exits, exit_name))

    def answer(page: Page, exit_name: str | None) -> dict[str, Any]:
        found = at(exit_name).predict(page)
        for step in found.trace:
            stages[step.name] += step.duration_ms  # OCR may have run strip by strip
        return {"label": found.label, "exit": found.exit}

    return answer, sum(package.manifest.files[name].size for name in package.needed_by(subject.target))


def _peer(name: str, subject: Subject, stages: Stages) -> tuple[Answer, int]:
    from ee_export.data.tokenizer import open_encoder

    package = subject.opened()
    manifest = package.manifest
    encoder = open_encoder(package)
    assert encoder is not None  # the comparison refuses a package of arrays
    run, size = PEERS[name](subject)
    run = _timed(stages, MODEL, run)

    def answer(page: Page, _: str | None) -> dict[str, Any]:
        if page.ocr is not None:
            page = replace(page, ocr=_timed(stages, OCR, page.ocr))
        image, words, boxes = encoder.contents(page, manifest.inputs)
        logits = run(encoder.arrays(image, words, boxes))
        return {"label": manifest.labels[int(logits[0].argmax())]}

    return answer, size


def _say(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
