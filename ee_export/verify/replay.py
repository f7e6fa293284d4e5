"""Replay a package's golden inputs on this machine, and compare logits and exits with the expected ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ee_export.data import golden_page
from ee_export.errors import BadRequest, NotEqual
from ee_export.package.manifest import FileEntry, Manifest
from ee_export.package.store import GOLDEN, Package, open_package
from ee_export.package.write import seal
from ee_export.runtime.load import load_package
from ee_export.verify import golden


def seal_verified(
    staging: Path,
    manifest: Manifest,
    pages: Sequence[golden.GoldenPage],
    target_name: str,
    progress: Callable[[str, int, int], None],
    kept: Mapping[str, FileEntry] = MappingProxyType({}),
) -> None:
    """Write the golden file and the manifest of a package in a staging folder, and verify one of its targets.

    ``kept``: entries of files that come from another package, see :func:`~ee_export.package.write.seal`.
    """
    (staging / GOLDEN).write_bytes(golden.write(pages, manifest))
    seal(staging, manifest, kept)
    progress("verify", 0, 1)
    verify_package(open_package(staging), target_name)
    progress("verify", 1, 1)


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """Largest logit difference per exit over the golden pages, and the operating points whose exits were replayed."""

    target: str
    pages: int
    tolerance: float
    differences: dict[str, float]
    operating_points: tuple[str, ...]


def verify_package(package: Package, target_name: str, point_name: str | None = None) -> VerifyResult:
    """Run the golden inputs through a target. Logits must be within its tolerance, exits must be equal at every point.

    The golden page is also encoded again, and its pixels and tokens must equal the stored ones.

    Args:
        package: all of its files are hashed first.
        target_name: the target to run.
        point_name: the operating point to replay, default all.

    Raises:
        BadPackage: a file is missing or changed.
        NotEqual: pixels, tokens, logits or exits differ. Names the exit or the page.
    """
    package.check()
    target = package.target(target_name)
    chain = load_package(package, target_name)
    pages, expected = golden.read(package)
    for index, page in enumerate(pages):
        if page.file is not None or page.words is not None:
            golden_input = golden_page.read_golden_page(page.file, page.words, f"{package.path}: golden page {index}")
            golden_page.require_same_encoding(golden_input, page.inputs, chain.encoder, package.manifest.inputs)
    logits = [chain.logits(page.inputs) for page in pages]
    differences = {
        name: max(
            float(np.abs(page_logits[name] - page.of(target_name)[name]).max())
            for page_logits, page in zip(logits, pages, strict=True)
        )
        for name in package.manifest.answers()
    }
    golden.require_same(differences, target.tolerance, str(package.path))
    points = tuple(target.operating_points) if point_name is None else (point_name,)
    for point in points:
        if point not in target.operating_points:
            known = ", ".join(target.operating_points)
            raise BadRequest(f"unknown operating point '{point}': target '{target_name}' has {known}")
        recorded = expected[f"{target_name}/{point}"]
        exits = golden.find_expected_exits(pages, logits, package.manifest, target, point)
        if (recorded != exits).any():
            index = int(np.flatnonzero(recorded != exits)[0])
            raise NotEqual(
                f"{package.path}: operating point '{point}': golden page {index} exited at {chain.exits[exits[index]]}, expected "
                f"{chain.exits[recorded[index]]}; rebuild the target on this machine with `ee-export build` or `compile`"
            )
    return VerifyResult(target_name, len(pages), target.tolerance, differences, points)
