"""Golden inputs: a few pages with the logits they must give, so that a package can prove itself anywhere."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ee_export.encode import Arrays, tokens_read
from ee_export.errors import BadPackage, NotEqual
from ee_export.manifest import Manifest, Target, gate_name
from ee_export.package import GOLDEN, Package
from ee_export.policy.decide import leave_at, score_pages
from ee_export.runtime.plan import rules

INPUTS = ("pixel_values", "input_ids", "bbox", "attention_mask")


@dataclass(frozen=True, slots=True)
class GoldenPage:
    """Encoded inputs of one page, and the logits that it must give: ``[1, C]`` per exit and ``[1, 1]`` per gate.

    ``logits``: the trained model's; ``own``: of the targets, by name, that compute in other numbers than it. ``file``, ``words``: of
    the golden page alone, the image file and the words that the inputs were encoded from.
    """

    inputs: Arrays
    logits: dict[str, np.ndarray]
    own: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    file: bytes | None = None
    words: bytes | None = None

    def of(self, target_name: str) -> dict[str, np.ndarray]:
        """The logits that a target must give."""
        return self.own.get(target_name, self.logits)


def synthetic_inputs(image_size: int, lengths: Sequence[int], vocab_size: int, seed: int = 0) -> list[Arrays]:
    """Encoded pages that come from no document: grey blocks and random tokens, one page for each text length."""
    rng = np.random.default_rng(seed)
    pages: list[Arrays] = []
    for tokens in lengths:
        cells = rng.integers(0, 3, (1, 1, 14, 14)).astype(np.float32) - 1
        side = -(-image_size // 14)
        pixels = cells.repeat(side, 2).repeat(side, 3)[:, :, :image_size, :image_size].repeat(3, 1)
        corners = np.sort(rng.integers(0, 1001, (1, tokens, 2, 2)), axis=2)
        pages.append(
            {
                "pixel_values": np.ascontiguousarray(pixels),
                "input_ids": rng.integers(5, vocab_size, (1, tokens)),
                "bbox": corners.reshape(1, tokens, 4),
                "attention_mask": np.ones((1, tokens), np.int64),
            }
        )
    return pages


def write(pages: Sequence[GoldenPage], manifest: Manifest) -> bytes:
    """golden.npz: inputs and logits of every page, and the exit each leaves at per target and operating point."""
    arrays: Arrays = {}
    for at, page in enumerate(pages):
        arrays |= {f"{at}/{name}": value for name, value in page.inputs.items()}
        arrays |= {f"{at}/{name}.logits": value for name, value in page.logits.items()}
        sources = {"file": page.file, "words": page.words}
        arrays |= {f"{at}/{name}": np.frombuffer(data, np.uint8) for name, data in sources.items() if data is not None}
        for target_name, own in page.own.items():
            arrays |= {f"{at}/{target_name}/{name}.logits": value for name, value in own.items()}
    for target_name, target in manifest.targets.items():
        said = [page.of(target_name) for page in pages]
        for point in target.operating_points:
            arrays[f"exits/{target_name}/{point}"] = expected_exits(pages, said, manifest, target, point)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def read(package: Package) -> tuple[list[GoldenPage], dict[str, np.ndarray]]:
    """The golden pages, and the expected exits by ``target/operating point``.

    Raises:
        BadPackage: golden.npz is damaged or lacks an entry.
    """
    where = package.path / GOLDEN
    try:
        with np.load(io.BytesIO(package.read(GOLDEN)), allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        count = len({name.split("/")[0] for name in arrays if name.split("/")[0].isdigit()})
        names = package.manifest.answers()
        pages = [
            GoldenPage(
                {name: arrays[f"{at}/{name}"] for name in INPUTS},
                {name: arrays[f"{at}/{name}.logits"] for name in names},
                {
                    target: {name: arrays[f"{at}/{target}/{name}.logits"] for name in names}
                    for target in package.manifest.targets
                    if f"{at}/{target}/{names[-1]}.logits" in arrays
                },
                *(arrays[name].tobytes() if name in arrays else None for name in (f"{at}/file", f"{at}/words")),
            )
            for at in range(count)
        ]
    except (ValueError, KeyError, OSError, EOFError) as error:
        raise BadPackage(f"{where}: damaged ({error}); rebuild the package with `ee-export build`") from None
    if not pages:
        raise BadPackage(f"{where}: holds no pages; rebuild the package with `ee-export build`")
    return pages, {name.removeprefix("exits/"): arrays[name] for name in arrays if name.startswith("exits/")}


def expected_exits(
    pages: Sequence[GoldenPage],
    said: Sequence[Mapping[str, np.ndarray]],
    manifest: Manifest,
    target: Target,
    point_name: str,
) -> np.ndarray:
    """Index of the exit where each page leaves, int64 ``[N]``, by the logits that were ``said`` of it."""
    point = target.operating_points[point_name]
    logits = [np.concatenate([one[name] for one in said]) for name in manifest.exits]
    found = rules(manifest, target, point.weights)
    tokens = [[tokens_read(page.inputs, rule.reads) for page in pages] for rule in found]
    gates = [
        np.concatenate([one[gate_name(name)] for one in said]) if gate_name(name) in said[0] else None
        for name in manifest.exits
    ]
    probabilities, scores = score_pages(logits, found, point.criterion, tokens, gates)
    return leave_at(scores, [point.thresholds[name] for name in manifest.exits[:-1]], probabilities.argmax(2))


def require_same(found: dict[str, float], tolerance: float, where: str) -> None:
    """Raise NotEqual where an exit's golden logits differ by more than ``tolerance``."""
    for name, difference in found.items():
        if not difference <= tolerance:
            raise NotEqual(
                f"{where}: exit '{name}': golden logits differ by {difference:.2e}, more than the target's tolerance "
                f"{tolerance:.0e}; this machine does not give what was built: rebuild the target here with `ee-export build` or `compile`"
            )
