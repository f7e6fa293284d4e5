"""Golden inputs: a few pages with their expected logits, by which a package is verified on any machine."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ee_export.data.encode import TEXT_INPUTS, Arrays, count_tokens_read
from ee_export.data.inputs import without_prefix
from ee_export.errors import BadPackage, BadRequest, NotEqual, printable, shorten
from ee_export.package.encoding import INPUTS
from ee_export.package.input_specs import input_specs, longest_text, make_encoded_specs, texts_of
from ee_export.package.manifest import ARRAY, SOURCES, Manifest, Target, TensorSpec, gate_name, split_input
from ee_export.package.store import GOLDEN, Package
from ee_export.package.stored_arrays import ArrayFile, StoredArray
from ee_export.policy.decide import assign_exits, score_pages
from ee_export.runtime.plan import make_rules, operating_point

MOST_PAGES = 1000
MOST_BYTES = 2**30
"""Largest size of all arrays unpacked. Pages of 224 pixels take 0.6 MB each."""
LARGEST_FILE = 2**28
LARGEST_SOURCE = 2**20
"""Largest size of the golden page's image file or words, in bytes."""
Size = int | tuple[int, int]
"""Length of an axis, or its smallest and largest length."""
Kind = tuple[str, tuple[Size, ...]]
"""Dtype of a stored array as numpy writes it, and its shape."""
_REBUILD = "copy the package again, or rebuild it with `ee-export build`"


@dataclass(frozen=True, slots=True)
class GoldenPage:
    """Encoded inputs of one page with the expected logits: ``[1, C]`` per exit and ``[1, 1]`` per gate.

    ``logits``: those of the trained model. ``own``: by name, those of targets with another precision. ``file``,
    ``words``: the image file and the words that the inputs were encoded from, of the golden page alone.
    """

    inputs: Arrays
    logits: dict[str, np.ndarray]
    own: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    file: bytes | None = None
    words: bytes | None = None

    def of(self, target_name: str) -> dict[str, np.ndarray]:
        """The expected logits of a target."""
        return self.own.get(target_name, self.logits)


def synthetic_inputs(image_size: int, lengths: Sequence[int], vocab_size: int, seed: int = 0) -> list[Arrays]:
    """Make encoded pages without a document: grey blocks and random tokens, one page per text length."""
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
                "input_ids": rng.integers(min(5, vocab_size - 1), vocab_size, (1, tokens)),
                "bbox": corners.reshape(1, tokens, 4),
                "attention_mask": np.ones((1, tokens), np.int64),
            }
        )
    return pages


def write(pages: Sequence[GoldenPage], manifest: Manifest) -> bytes:
    """Make golden.npz: inputs and logits of every page, and its exit per target and operating point.

    Raises:
        BadRequest: there are so many or so large pages that :func:`read` would refuse the file.
    """
    arrays: Arrays = {}
    for index, page in enumerate(pages):
        arrays |= {f"{index}/{name}": value for name, value in page.inputs.items()}
        arrays |= {f"{index}/{name}.logits": value for name, value in page.logits.items()}
        sources = {"file": page.file, "words": page.words}
        arrays |= {
            f"{index}/{name}": np.frombuffer(data, np.uint8) for name, data in sources.items() if data is not None
        }
        for target_name, own in page.own.items():
            arrays |= {f"{index}/{target_name}/{name}.logits": value for name, value in own.items()}
    for target_name, target in manifest.targets.items():
        logits = [page.of(target_name) for page in pages]
        for point in target.operating_points:
            arrays[f"exits/{target_name}/{point}"] = find_expected_exits(pages, logits, manifest, target, point)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **{name: np.ascontiguousarray(a) for name, a in arrays.items()})
    size = max(sum(values.nbytes for values in arrays.values()) / MOST_BYTES, buffer.tell() / LARGEST_FILE)
    if len(pages) > MOST_PAGES or size > 1:
        raise BadRequest(
            f"{len(pages)} golden pages are too many or too large to carry; take fewer, {MOST_PAGES} at most"
        )
    return buffer.getvalue()


def read(package: Package) -> tuple[list[GoldenPage], dict[str, np.ndarray]]:
    """Read the golden pages, and the expected exits by ``target/operating point``.

    Nothing is unpacked before names, types and sizes are checked.

    Raises:
        BadPackage: golden.npz is damaged, lacks an entry, has an unknown one, or an entry differs from the type, shape
            and range that the manifest states.
    """
    where, manifest = package.path / GOLDEN, package.manifest
    if manifest.files[GOLDEN].size > LARGEST_FILE:
        raise BadPackage(f"{where}: larger than {LARGEST_FILE:,} bytes; {_REBUILD}")
    try:
        file = ArrayFile(package.read(GOLDEN))
        count = _count_pages(file.stored)
        _require_fitting(file.stored, count, manifest)
        arrays = {name: file.unpack(name) for name in file.stored}
        _require_ranges(arrays, manifest)
    except ValueError as error:
        raise BadPackage(f"{where}: {printable(shorten(error))}; {_REBUILD}") from None
    names = manifest.answers()
    pages = [
        GoldenPage(
            {
                name: arrays[f"{index}/{name}"]
                for name in dict.fromkeys((*INPUTS, *manifest.inputs))
                if f"{index}/{name}" in arrays
            },
            {name: arrays[f"{index}/{name}.logits"] for name in names},
            {
                target: {name: arrays[f"{index}/{target}/{name}.logits"] for name in names}
                for target in manifest.targets
                if f"{index}/{target}/{names[-1]}.logits" in arrays
            },
            *(arrays[name].tobytes() if name in arrays else None for name in (f"{index}/file", f"{index}/words")),
        )
        for index in range(count)
    ]
    return pages, {name.removeprefix("exits/"): arrays[name] for name in arrays if name.startswith("exits/")}


def _count_pages(names: Iterable[str]) -> int:
    numbers = {name.split("/")[0] for name in names} - {"exits"}
    count = len(numbers)
    if not count:
        raise ValueError("holds no pages")
    if count > MOST_PAGES or numbers != {str(index) for index in range(count)}:
        raise ValueError(f"its pages are not numbered 0 to {count - 1}, {MOST_PAGES} at most")
    return count


def _require_fitting(stored: Mapping[str, StoredArray], count: int, manifest: Manifest) -> None:
    """Require the entries of ``count`` pages, with the types and shapes that the manifest states, and no others.

    Inputs that the encoding makes and no segment reads are optional.
    """
    sources = {f"{index}/{name}" for index in range(count) for name in ("file", "words")} & stored.keys()
    for name in sources:
        array = stored[name]
        if array.dtype != "|u1" or len(array.shape) != 1 or not 1 <= array.size <= LARGEST_SOURCE:
            raise ValueError(f"{name}: {array.dtype} {list(array.shape)}, expected |u1 [1–{LARGEST_SOURCE}]")
    classes = len(manifest.labels)
    shapes = {name: _kind_of_input(spec, longest_text(manifest, name)) for name, spec in input_specs(manifest).items()}
    answers: dict[str, Kind] = {
        f"{name}.logits": ("<f4", (1, classes if name in manifest.exits else 1)) for name in manifest.answers()
    }
    expected: dict[str, Kind] = {
        f"exits/{target}/{point}": ("<i8", (count,))
        for target, entry in manifest.targets.items()
        for point in entry.operating_points
    }
    unread = _unread_kinds(manifest)
    for index in range(count):
        expected |= {f"{index}/{name}": kind for name, kind in (shapes | answers).items()}
        expected |= {f"{index}/{name}": kind for name, kind in unread.items() if f"{index}/{name}" in stored}
        for target in manifest.targets:
            own = {f"{index}/{target}/{name}": kind for name, kind in answers.items()}
            if any(name in stored for name in own):
                expected |= own
    for name in stored:
        if name not in expected and name not in sources:
            raise ValueError(f"{name}: unknown entry")
    for name, (dtype, shape) in expected.items():
        if name not in stored:
            raise ValueError(f"{name}: missing")
        array = stored[name]
        fits = len(array.shape) == len(shape) and all(
            low <= size <= high for size, (low, high) in zip(array.shape, map(_bounds, shape), strict=True)
        )
        if array.dtype != dtype or not fits:
            expected_shape = [f"{size[0]}–{size[1]}" if isinstance(size, tuple) else size for size in shape]
            raise ValueError(f"{name}: {array.dtype} {list(array.shape)}, expected {dtype} {expected_shape}")
    for index in range(count):
        for front in manifest.all_encodings():
            names = [f"{front}.{name}" if front else name for name in TEXT_INPUTS]
            lengths = {stored[f"{index}/{name}"].shape[1] for name in names if f"{index}/{name}" in stored}
            if len(lengths) > 1:
                raise ValueError(f"{index}/{names[0]}: not as long as bbox and attention_mask")
    total = sum(array.size for array in stored.values())
    if total > MOST_BYTES:
        raise ValueError(f"unpacks to {total:,} bytes, more than {MOST_BYTES:,}")


def _kind_of_input(spec: TensorSpec, longest: int | None) -> Kind:
    """Dtype and shape of one page's input as numpy stores it."""
    free = (1, MOST_BYTES) if longest is None else (0, longest)
    shape = (1, *(axis if isinstance(axis, int) else free for axis in spec.shape[1:]))
    return np.dtype(spec.dtype).str.replace("=", "<"), shape


def _unread_kinds(manifest: Manifest) -> dict[str, Kind]:
    """Inputs that the encoding can make and the model does not read. A file may hold them."""
    if manifest.encoding is None:
        return {}
    longest = manifest.encoding.max_text_tokens
    return {
        name: _kind_of_input(spec, longest if SOURCES[name] == "text" else None)
        for name, spec in make_encoded_specs(SOURCES, {"": manifest.encoding}).items()
        if name not in manifest.inputs
    }


def _bounds(size: Size) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


def _require_ranges(arrays: Mapping[str, np.ndarray], manifest: Manifest) -> None:
    highest = {name: _find_highest(name, manifest) for name in (*INPUTS, *manifest.inputs)}
    for name, values in arrays.items():
        last_part = name.rpartition("/")[2]
        exits = name.startswith("exits/")
        if not exits and (last_part in ("file", "words") or manifest.inputs.get(last_part) == ARRAY):
            continue  # the page reader checks file and words, and arrays of a caller may have any values
        if values.dtype.kind == "f":
            fits = bool(np.isfinite(values).all())
        else:
            last = len(manifest.exits) - 1 if exits else highest[last_part]
            fits = values.min(initial=0) >= 0 and values.max(initial=0) <= last
        if not fits:
            raise ValueError(f"{name}: a value is out of range")


def _find_highest(name: str, manifest: Manifest) -> int:
    """The largest value that an input of whole numbers may have."""
    front, base = split_input(name, manifest.encodings)
    encoding = manifest.all_encodings().get(front)
    highest = INPUTS[base].highest if base in INPUTS else None
    if isinstance(highest, int):
        return highest
    rows = encoding.vocab_size if encoding is not None and "text" in manifest.inputs_of(front).values() else None
    return np.iinfo(np.int64).max if rows is None else rows - 1


def find_expected_exits(
    pages: Sequence[GoldenPage],
    logits: Sequence[Mapping[str, np.ndarray]],
    manifest: Manifest,
    target: Target,
    point_name: str,
) -> np.ndarray:
    """Index of each page's exit, int64 ``[N]``, decided by its ``logits``."""
    point = operating_point(target, point_name)
    by_exit = [np.concatenate([page_logits[name] for page_logits in logits]) for name in manifest.exits]
    exit_rules = make_rules(manifest, target, point.weights)
    tokens = [
        [count_tokens_read(without_prefix(text, page.inputs), rule.reads) for page in pages]
        for rule, text in zip(exit_rules, texts_of(manifest), strict=True)
    ]
    gates = [
        np.concatenate([page_logits[gate_name(name)] for page_logits in logits])
        if gate_name(name) in logits[0]
        else None
        for name in manifest.exits
    ]
    probabilities, scores = score_pages(by_exit, exit_rules, point.criterion, tokens, gates)
    return assign_exits(scores, [point.thresholds[name] for name in manifest.exits[:-1]], probabilities.argmax(2))


def require_same(differences: dict[str, float], tolerance: float, where: str) -> None:
    """Raise NotEqual if an exit's golden logits differ by more than ``tolerance``."""
    for name, difference in differences.items():
        if not difference <= tolerance:
            raise NotEqual(
                f"{where}: exit '{name}': golden logits differ by {difference:.2e}, more than the target's tolerance "
                f"{tolerance:.0e}; this machine does not reproduce the logits of the build: rebuild the target here with `ee-export build` or `compile`"
            )
