"""Variants of the vision exit: convolutional trunks of several widths, read cell by cell or averaged.

    python benchmarks/vision_heads.py ../shared/data/pages [--epochs 30]

Every variant is trained in the same way on the real pages of `train`, and evaluated on `val`: accuracy, the share of
pages above the highest score of a wrong one, which could exit before OCR, and its milliseconds in torch.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from ee_export.data.dataset import read_dataset
from ee_export.data.encode import Encoder
from ee_export.model import checkpoint
from ee_export.model.augment import augment_images
from ee_export.model.exits import HeadSpec
from ee_export.model.heads import PixelRamp
from ee_export.model.layoutlmv3 import EarlyExitLayoutLMv3, EarlyExitLayoutLMv3Config
from ee_export.model.page_cache import encode_pages
from ee_export.model.pages import EncodedPages, encoding_digest
from ee_export.runtime.machine import machine_name

BATCH = 32


class Averaged(nn.Module):
    """The same convolutions, with their last feature map averaged before the classifier."""

    def __init__(self, head: PixelRamp, labels: int) -> None:
        super().__init__()
        self.trunk, self.dropout = head.trunk, head.dropout
        convolutions = [layer for layer in head.trunk if isinstance(layer, nn.Conv2d)]
        self.out_proj = nn.Linear(convolutions[-1].out_channels, labels)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.out_proj(self.dropout(self.trunk(pixels).mean((2, 3))))


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--epochs", default=30, show_default=True, help="Epochs of each variant.")
def main(data: Path, epochs: int) -> None:
    """Train and compare the variants on DATA/train and DATA/val."""
    train, val = read_dataset(data / "train"), read_dataset(data / "val")
    config = EarlyExitLayoutLMv3Config(image_mode="L", max_text_tokens=2)
    tokenizer = checkpoint.train_tokenizer(iter([["page"]]), 300)
    encoder = Encoder(checkpoint.encoding_of(config), tokenizer)
    encoding = encoding_digest(encoder, tokenizer, EarlyExitLayoutLMv3)
    scratch = Path(tempfile.mkdtemp())
    pages, held_out = (
        encode_pages(part, encoder, EarlyExitLayoutLMv3, scratch / name, encoding, lambda done, total: None)
        for name, part in (("train", train), ("val", val))
    )
    shutil.rmtree(scratch)  # the files stay mapped
    print(
        f"{len(pages)} pages, {epochs} epochs, evaluated on {len(held_out)}; {machine_name()}, torch {torch.__version__}"
    )
    print(f"{'variant':24}{'parameters':>12}{'accuracy':>10}{'could exit':>13}{'ms':>8}")
    labels = len(train.labels)
    for width in (8, 16):
        for kind in ("cells", "averaged"):
            torch.manual_seed(0)
            head: nn.Module = PixelRamp(config.input_size, labels, HeadSpec(reads="pixels", width=width, dropout=0.3))
            if kind == "averaged":
                head = Averaged(head, labels)  # type: ignore[arg-type]
            name = f"width {width}, {kind}"
            fit(head, pages, epochs, name)
            accuracy, exiting = evaluate(head, held_out)
            parameters = sum(weight.numel() for weight in head.parameters())
            print(
                f"{name:24}{parameters:12,}{accuracy:10.3f}{exiting:13.1%}{latency_ms(head, held_out):8.2f}", flush=True
            )


def levels(pages: EncodedPages, rows: Sequence[int]) -> Tensor:
    """Read grey levels 0–255 of some pages, float32 ``[B, 1, S, S]``."""
    assert pages.pixels is not None
    return torch.from_numpy(pages.pixels[list(rows)]).float()


def fit(head: nn.Module, pages: EncodedPages, epochs: int, name: str) -> None:
    """Train with AdamW on a cosine schedule, with the augmentation of `ee-export train`."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3, weight_decay=0.05)
    steps = epochs * (len(pages) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    rng = np.random.default_rng(0)
    head.train()
    for _ in track(range(epochs), name):
        order = rng.permutation(len(pages))
        for index in range(0, len(order) - BATCH + 1, BATCH):
            rows = order[index : index + BATCH].tolist()
            pixels = augment_images(levels(pages, rows) / 255, rng).expand(-1, 3, -1, -1) * 2 - 1
            loss = F.cross_entropy(head(pixels), pages.targets[rows], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def evaluate(head: nn.Module, pages: EncodedPages) -> tuple[float, float]:
    """Compute accuracy, and the share of pages with a higher score than every wrong one."""
    head.eval()
    scores, right = [], []
    for index in range(0, len(pages), BATCH):
        rows = range(index, min(index + BATCH, len(pages)))
        probabilities = head(levels(pages, rows).expand(-1, 3, -1, -1) / 127.5 - 1).softmax(1)
        scores.append(probabilities.max(1).values)
        right.append(probabilities.argmax(1) == pages.targets[rows])
    score, correct = torch.cat(scores), torch.cat(right)
    threshold = score[~correct].max() if (~correct).any() else torch.tensor(0.0)
    return float(correct.float().mean()), float((score > threshold).float().mean())


@torch.no_grad()
def latency_ms(head: nn.Module, pages: EncodedPages) -> float:
    """Measure the median of 50 runs on one page."""
    pixels = levels(pages, [0]).expand(-1, 3, -1, -1) / 127.5 - 1
    times = []
    for _ in range(50):
        started = time.perf_counter()
        head(pixels)
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


if __name__ == "__main__":
    main()
