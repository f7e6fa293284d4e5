"""Packages that were changed on purpose, by someone who can write files and compute hashes."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ee_export.data.encode import Arrays, blank_page
from ee_export.runtime.chain import Chain


def copied(package: Path, destination: Path) -> Path:
    """A copy of a package that may be changed."""
    return Path(shutil.copytree(package, destination))


def with_manifest(package: Path, change: Callable[[dict[str, Any]], object] = lambda manifest: None) -> Path:
    """The package after a change of its manifest. All its files are hashed again, so the hashes match."""
    path = package / "manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    manifest["files"] = {
        file.relative_to(package).as_posix(): {
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "size": file.stat().st_size,
        }
        for file in sorted(package.rglob("*"))
        if file.is_file() and file != path
    }
    path.write_text(json.dumps(manifest))
    return package


def with_graph(package: Path, file: str, change: Callable[[onnx.ModelProto], object]) -> Path:
    """The package after one graph was changed, with right hashes."""
    path = package / file
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    return with_manifest(package)


def flattened(package: Path) -> Path:
    """The package with its segments moved to its root."""
    for file in (package / "cpu-fp32").iterdir():
        file.rename(package / file.name)
    (package / "cpu-fp32").rmdir()

    def change(manifest: dict[str, Any]) -> None:
        for segment in manifest["targets"]["cpu-fp32"]["segments"]:
            segment["file"] = segment["file"].partition("/")[2]

    return with_manifest(package, change)


def some_arrays(chain: Chain, tokens: int = 12) -> Arrays:
    """Inputs of a page of noise."""
    noise = np.random.default_rng(3)
    arrays = blank_page(chain.encoder.encoding, tokens)
    arrays["pixel_values"] = noise.standard_normal(arrays["pixel_values"].shape).astype(np.float32)
    arrays["input_ids"] = noise.integers(5, 400, arrays["input_ids"].shape)
    return arrays


def same_logits(first: Chain, second: Chain) -> bool:
    """True if two chains give the same logits, bit for bit, at every exit."""
    ours, theirs = first.logits(some_arrays(first)), second.logits(some_arrays(second))
    return all(np.array_equal(ours[name], theirs[name]) for name in first.exits)
