"""A residual network with a classifier behind every stage. It reads a page's image.

python residual_cnn.py PAGES                                      # trains, and writes residual_cnn.pt
ee-export build residual_cnn.py:make_model PAGES --out cnn.ee     # cuts, proves, calibrates and tunes
"""

import sys

import numpy as np
import torch
from torch import nn

from ee_export.export import Part, PartedModel, encode_folder, image_encoding

WIDTHS = (16, 32, 64)
ENCODING = image_encoding(96, mode="L")
WEIGHTS = "residual_cnn.pt"


class Stage(nn.Module):
    def __init__(self, before, width):
        super().__init__()
        self.halve = nn.Sequential(nn.Conv2d(before, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1)
        )

    def forward(self, x):
        x = self.halve(x)
        return torch.relu(x + self.block(x))


class ResidualCNN(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.stages = nn.ModuleList(map(Stage, (3, *WIDTHS), WIDTHS))
        self.heads = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * width, classes)) for width in WIDTHS
        )

    def forward(self, pixel_values):
        x, logits = pixel_values, {}
        for k, (stage, head) in enumerate(zip(self.stages, self.heads, strict=True), 1):
            x = stage(x)
            logits[f"stage.{k}"] = head(x)
        return logits


def train(folder, epochs=15):
    pages = encode_folder(folder, ENCODING)
    labels, targets = np.unique(pages["label"], return_inverse=True)
    targets = torch.from_numpy(targets)
    pixels = torch.from_numpy(pages["pixel_values"])
    torch.manual_seed(0)
    net = ResidualCNN(len(labels)).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(targets)).split(32):
            loss = sum(nn.functional.cross_entropy(each, targets[rows]) for each in net(pixels[rows]).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.save({"weights": net.state_dict(), "labels": labels.tolist()}, WEIGHTS)


def make_model():
    saved = torch.load(WEIGHTS, weights_only=True)
    net = ResidualCNN(len(saved["labels"])).eval()
    net.load_state_dict(saved["weights"])
    names = ["pixel_values", *(f"state.{k}" for k in range(1, len(WIDTHS) + 1))]
    parts = []
    for k, (stage, head) in enumerate(zip(net.stages, net.heads, strict=True), 1):
        parts.append(Part((names[k - 1],), (names[k],), stage))
        parts.append(Part((names[k],), (f"stage.{k}.logits",), head))
    return PartedModel(
        parts=parts,
        exits=[f"stage.{k}" for k in range(1, len(WIDTHS) + 1)],
        labels=saved["labels"],
        module=net,
        encoding=ENCODING,
        reference=net,
    )


if __name__ == "__main__":
    train(sys.argv[1])
