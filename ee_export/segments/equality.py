"""Proof of equality: exported segments against the unmodified torch model in eager mode, at every exit."""

from collections.abc import Callable

import numpy as np
import torch

from ee_export.encode import Arrays
from ee_export.errors import NotEqual
from ee_export.model.early_exit import EarlyExitModel

Run = Callable[[Arrays], dict[str, np.ndarray]]

TOLERANCE_FP32 = 2e-4


def cases(model: EarlyExitModel, seed: int = 0) -> list[Arrays]:
    """Inputs that span what a chain meets: batch 1–5, 1 to the longest text, padding, pages without text."""
    config = model.config
    longest = config.longest_proof
    rng = np.random.default_rng(seed)
    sizes = [(1, 1), (1, 2), (2, 17), (3, 64), (4, min(128, longest)), (5, 33), (1, longest), (2, longest)]
    return [_case(model, rng, batch, tokens) for batch, tokens in sizes]


def largest_differences(model: EarlyExitModel, run: Run, inputs: list[Arrays]) -> dict[str, float]:
    """Largest absolute logit difference per exit and gate between ``run`` and the unmodified model, over all inputs."""
    worst: dict[str, float] = {}
    for arrays in inputs:
        expected = model.reference_logits(**{name: torch.from_numpy(value) for name, value in arrays.items()})
        found = run(arrays)
        for name, values in expected.items():
            difference = float(np.abs(found[name] - values.numpy()).max())
            worst[name] = max(worst.get(name, 0.0), difference if np.isfinite(difference) else np.inf)
    return worst


def require(differences: dict[str, float], tolerance: float) -> None:
    """Raise NotEqual where an exit differs by more than ``tolerance``."""
    for name, difference in differences.items():
        if not difference <= tolerance:
            raise NotEqual(
                f"exit '{name}': its exported logits differ from the trained model's by {difference:.2e}, more than "
                f"{tolerance:.0e}; nothing was written"
            )


def _case(model: EarlyExitModel, rng: np.random.Generator, batch: int, tokens: int) -> Arrays:
    config = model.config
    lengths = np.full(batch, tokens)
    if batch > 1:
        lengths[1:] = rng.integers(min(2, tokens), tokens + 1, batch - 1)
        lengths[-1] = min(2, tokens)  # a page without words: its two special tokens only
    corners = np.sort(rng.integers(0, 1001, (batch, tokens, 2, 2)), axis=2)
    mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
    ids = rng.integers(0, config.vocab_size - 1, (batch, tokens))
    ids += ids >= config.pad_token_id  # any but the padding, which stands anywhere in a vocabulary
    side = config.input_size
    return {
        "pixel_values": rng.uniform(-1, 1, (batch, 3, side, side)).astype(np.float32),
        "input_ids": np.where(mask, ids, config.pad_token_id).astype(np.int64),
        "bbox": (corners.reshape(batch, tokens, 4) * mask[..., None]).astype(np.int64),
        "attention_mask": mask,
    }
