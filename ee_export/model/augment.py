"""Augment training pages with random changes that resemble errors of scanners and OCR engines."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def augment_images(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Turn, scale, shift, brighten, add noise and cover a patch, each page by its own amount.

    Args:
        pixels: float32 ``[B, 1 or 3, S, S]`` in [0, 1].
        rng: source of all randomness.
    """
    batch, side = len(pixels), pixels.shape[-1]

    def uniform(*shape: int) -> Tensor:
        return torch.from_numpy(rng.uniform(-1, 1, shape).astype(np.float32))

    angle, scale, shift = 0.035 * uniform(batch), 1 + 0.06 * uniform(batch, 2), 0.05 * uniform(batch, 2)
    cos, sin = torch.cos(angle), torch.sin(angle)
    top = torch.stack([cos * scale[:, 0], -sin * scale[:, 1], shift[:, 0]], dim=1)
    bottom = torch.stack([sin * scale[:, 0], cos * scale[:, 1], shift[:, 1]], dim=1)
    grid = affine_grid(torch.stack([top, bottom], dim=1), side)
    pixels = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    pixels.mul_(1 + 0.2 * uniform(batch, 1, 1, 1)).add_(0.1 * uniform(batch, 1, 1, 1))
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))  # three times as fast as NumPy's
    noise = torch.randn(batch, 1, side, side, generator=generator)  # grey, as a scanner's noise
    pixels.add_(noise.mul_(0.05 * uniform(batch, 1, 1, 1).abs()))
    for page in pixels:
        if rng.random() < 0.5:
            continue
        height, width = rng.integers(side // 16, side // 3, 2)
        y, x = rng.integers(0, side - height), rng.integers(0, side - width)
        page[:, y : y + height, x : x + width] = float(rng.uniform(0, 1))
    return pixels


def affine_grid(matrices: Tensor, side: int) -> Tensor:
    """The sampling positions of a square image for ``grid_sample``, equal to ``torch.nn.functional.affine_grid``.

    A position is the sum of a term of its column and a term of its row. So two small sums replace a matrix product per
    pixel, which is five times as fast on a CPU.

    Args:
        matrices: float32 ``[B, 2, 3]``, from coordinates in [-1, 1] of the new image to those of the old one.
        side: of the image, in pixels.

    Returns:
        float32 ``[B, S, S, 2]``: x and y, without aligned corners.
    """
    centres = (2 * torch.arange(side) + 1) / side - 1
    columns = (matrices[:, :, 0, None] * centres).transpose(1, 2).contiguous()
    rows = (matrices[:, :, 1, None] * centres + matrices[:, :, 2, None]).transpose(1, 2).contiguous()
    return columns[:, None] + rows[:, :, None]


def augment_text(
    ids: np.ndarray, boxes: np.ndarray, room: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Drop tokens, the page's beginning or end, or rarely all tokens. Shift and stretch the boxes slightly.

    Args:
        ids: int ``[T]`` with the special tokens at both ends.
        boxes: int ``[T, 4]`` in 0–1000.
        room: largest number of remaining tokens.
        rng: source of all randomness.
    """
    keep = rng.random(len(ids)) >= rng.uniform(0, 0.2)
    if rng.random() < 0.25 and len(ids) > 8:
        cut = rng.integers(1, len(ids) - 1)
        lost = slice(0, cut) if rng.random() < 0.5 else slice(cut, None)
        keep[lost] = False
    if rng.random() < 0.01:
        keep[:] = False
    keep[np.flatnonzero(keep)[room - 1 :]] = False
    keep[[0, -1]] = True
    scale, shift = rng.uniform(0.96, 1.04, 2), rng.uniform(-30, 30, 2)
    moved = (boxes * np.tile(scale, 2) + np.tile(shift, 2)).clip(0, 1000).astype(boxes.dtype)
    moved[[0, -1]] = 0
    return ids[keep], moved[keep]
