"""`python -m ee_export.bench.worker`: one contender in a process of its own, with JSON lines as input and output.

Each contender has a process, so that its threads do not spin while another contender is measured, and its memory is its
own.
"""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from ee_export.bench.load import memory_mb
from ee_export.bench.messages import CHAIN, Memory, Opened, PageAnswer, Request, Subject
from ee_export.bench.peers import PEERS
from ee_export.bench.stages import ENCODE, MODEL, OCR, READ, REST
from ee_export.data.encode import Encoder
from ee_export.data.ocr import tesseract
from ee_export.data.page import Page, read_page
from ee_export.errors import EeError
from ee_export.package.decode import decode

_METHODS = (
    (Page, "decode_reduced", READ),
    (Page, "decode", READ),
    (Encoder, "images", ENCODE),
    (Encoder, "text", ENCODE),
)

Stages = defaultdict[str, float]
"""Milliseconds by stage of the current page."""
Classify = Callable[[Page, str | None], tuple[str, str | None]]
"""Classifies a page at an exit, or where the operating point decides. Returns the label, and the exit for the chain."""


def main() -> None:
    """Open the contender, classify one page per line, and print the memory figures after an empty line."""
    name, *rest = sys.argv[1:]
    subject = decode(Subject, json.loads(rest[0]), "the subject")
    stages: Stages = defaultdict(float)
    # The methods of the classes are replaced, because the runtime has no hooks and this process does nothing else.
    for owner, method, stage in _METHODS:
        setattr(owner, method, _add_timer(stages, stage, getattr(owner, method)))
    before = memory_mb("VmRSS:")
    started = time.perf_counter()
    try:
        classify, size = _open_chain(subject, stages) if name == CHAIN else _open_peer(name, subject, stages)
    except EeError as error:
        _write(Opened(error=str(error)))
        return
    except ImportError as error:
        _write(Opened(error=f"needs {error.name}: `pip install 'ee_export[export]'`"))
        return
    _write(Opened(time.perf_counter() - started, size / 1e6))
    for line in sys.stdin:
        if not line.strip():
            break
        request = decode(Request, json.loads(line), "the request")
        page = _read(Path(request.path), ocr=request.ocr)
        stages.clear()
        started = time.perf_counter()
        label, exit_name = classify(page, request.exit)
        taken = (time.perf_counter() - started) * 1e3
        _write(PageAnswer(taken, label, exit_name, {**stages, REST: taken - sum(stages.values())}))
    _write(Memory(memory_mb("VmRSS:") - before, memory_mb("VmHWM:") - before))


def _read(path: Path, *, ocr: bool) -> Page:
    """Read a page as a service receives it: its bytes, and its words or an OCR engine."""
    page = read_page(path)
    if page.image is not None:
        page = replace(page, image=path.read_bytes())
    return replace(page, words=None, boxes=None, ocr=tesseract()) if ocr else page


def _add_timer(stages: Stages, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function, so that its time is added to a stage."""

    def run_timed(*arguments: Any) -> Any:
        started = time.perf_counter()
        result = function(*arguments)
        stages[stage] += (time.perf_counter() - started) * 1e3
        return result

    return run_timed


def _open_chain(subject: Subject, stages: Stages) -> tuple[Classify, int]:
    from ee_export.runtime.chain import Chain
    from ee_export.runtime.load import load_package
    from ee_export.runtime.plan import make_exit_point

    package = subject.open()
    chain = load_package(package, subject.target, subject.operating_point, subject.threads, one_pool=True)

    @cache  # made for the first page of an exit, because loading is timed and most contenders name no exit
    def chain_at(exit_name: str | None) -> Chain:
        return chain if exit_name is None else chain.with_point(make_exit_point(chain.exits, exit_name))

    def classify(page: Page, exit_name: str | None) -> tuple[str, str | None]:
        result = chain_at(exit_name).predict(page)
        for step in result.trace:
            stages[step.name] += step.duration_ms  # OCR may run strip by strip
        return result.label, result.exit

    return classify, sum(package.manifest.files[name].size for name in package.list_needed_files(subject.target))


def _open_peer(name: str, subject: Subject, stages: Stages) -> tuple[Classify, int]:
    from ee_export.data.tokenizer import open_encoder

    package = subject.open()
    manifest = package.manifest
    encoder = open_encoder(package)
    assert encoder is not None  # the comparison rejects a package of arrays
    run, size = PEERS[name](subject)
    run = _add_timer(stages, MODEL, run)

    def classify(page: Page, _: str | None) -> tuple[str, str | None]:
        if page.ocr is not None:
            page = replace(page, ocr=_add_timer(stages, OCR, page.ocr))
        image, words, boxes = encoder.contents(page, manifest.inputs)
        logits = run(encoder.arrays(image, words, boxes))
        return manifest.labels[int(logits[0].argmax())], None

    return classify, size


def _write(message: Opened | PageAnswer | Memory) -> None:
    print(json.dumps(asdict(message)), flush=True)


if __name__ == "__main__":
    main()
