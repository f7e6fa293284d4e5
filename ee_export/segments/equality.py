"""Prove that exported segments equal the unmodified torch model in eager mode, at every exit."""

from collections.abc import Callable

import numpy as np

from ee_export.data.encode import Arrays
from ee_export.errors import NotEqual
from ee_export.model.parts import PartedModel
from ee_export.package.encoding import Encoding
from ee_export.segments.trace import MakeInputs

Run = Callable[[Arrays], dict[str, np.ndarray]]

TOLERANCE_FP32 = 2e-4


def make_cases(model: PartedModel, seed: int = 0) -> list[Arrays]:
    """Make inputs of the sizes that a chain gets: batch 1–5, 1 to the longest text, padding, pages without text."""
    assert model.encoding is not None
    longest = model.longest_proof or model.encoding.max_text_tokens
    rng = np.random.default_rng(seed)
    sizes = [(1, 1), (1, 2), (2, 17), (3, 64), (4, min(128, longest)), (5, 33), (1, longest), (2, longest)]
    # A text that the model does not read has any length.
    most = longest if model.reads("text") else max(tokens for _, tokens in sizes)
    return [make_case(model.encoding, rng, batch, min(tokens, most)) for batch, tokens in sizes]


def make_inputs(model: PartedModel, seed: int = 0) -> MakeInputs:
    """A function that makes inputs of any number of pages and any length of text, like those of :func:`make_cases`."""
    encoding, rng = model.encoding, np.random.default_rng(seed)
    assert encoding is not None
    return lambda pages, tokens: make_case(encoding, rng, pages, tokens)


def largest_differences(model: PartedModel, run: Run, inputs: list[Arrays]) -> dict[str, float]:
    """Largest absolute logit difference per exit and gate between ``run`` and the unmodified model, over all inputs."""
    worst: dict[str, float] = {}
    for arrays in inputs:
        logits = run(arrays)
        for name, expected in model.logits(arrays).items():
            difference = float(np.abs(logits[name] - expected).max())
            worst[name] = max(worst.get(name, 0.0), difference if np.isfinite(difference) else np.inf)
    return worst


def require_equal(differences: dict[str, float], tolerance: float) -> None:
    """Raise NotEqual if an exit differs by more than ``tolerance``."""
    for name, difference in differences.items():
        if not difference <= tolerance:
            raise NotEqual(
                f"exit '{name}': its exported logits differ from the trained model's by {difference:.2e}, more than "
                f"{tolerance:.0e}; nothing was written"
            )


def make_case(encoding: Encoding, rng: np.random.Generator, batch: int, tokens: int) -> Arrays:
    """Make inputs of ``batch`` pages with at most ``tokens`` tokens. The first page has so many, the last one has no words."""
    rows = encoding.vocab_size or 2
    lengths = np.full(batch, tokens)
    if batch > 1:
        lengths[1:] = rng.integers(min(2, tokens), tokens + 1, batch - 1)
        lengths[-1] = min(2, tokens)  # a page without words has two special tokens only
    corners = np.sort(rng.integers(0, 1001, (batch, tokens, 2, 2)), axis=2)
    mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
    ids = rng.integers(0, rows - 1, (batch, tokens))
    ids += ids >= encoding.pad_id  # any id but that of the padding, which can stand anywhere in a vocabulary
    side = encoding.image_size
    return {
        "pixel_values": rng.uniform(-1, 1, (batch, 3, side, side)).astype(np.float32),
        "input_ids": np.where(mask, ids, encoding.pad_id).astype(np.int64),
        "bbox": (corners.reshape(batch, tokens, 4) * mask[..., None]).astype(np.int64),
        "attention_mask": mask,
    }
