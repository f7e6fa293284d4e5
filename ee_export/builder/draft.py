"""The chain of a target that is still being built."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from ee_export.package.manifest import FULL, Target
from ee_export.runtime.backends import BACKENDS
from ee_export.runtime.chain import Chain
from ee_export.runtime.gpu_targets import open_draft_on_gpu
from ee_export.runtime.opening import open_segment
from ee_export.runtime.ort import available_threads
from ee_export.runtime.plan import operating_point


def make_draft_chain(before: Chain, name: str, target: Target, folder: Path) -> Chain:
    """Make the chain of a target whose segments are not in a package yet."""
    manifest = before.package.manifest
    package = replace(before.package, manifest=replace(manifest, targets={**manifest.targets, name: target}))
    point = operating_point(target, FULL)
    backend = BACKENDS.find(target.backend)
    if backend.on_gpu:
        return before.beside(package, target, point, open_draft_on_gpu(backend, target, name, folder))
    threads = available_threads()
    opened = partial(open_segment, threads=threads, one_pool=True)
    segments = [opened(target.backend, spec, folder / spec.file) for spec in target.segments]
    return before.beside(package, target, point, segments)
