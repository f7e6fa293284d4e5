"""A vision transformer in plain torch with a ramp behind every layer. It reads a page's image.

A ramp reads only the first row. So each layer is two parts: the first row, which the answer needs, and the other rows, which are
computed only for remaining pages.

    python vit_ramps.py PAGES                                      # trains, and writes vit_ramps.pt
    ee-export build vit_ramps.py:make_model PAGES --out vit.ee     # cuts, proves, calibrates and tunes
"""

import sys
from functools import partial

import numpy as np
import torch
from torch import nn

from ee_export.export import Part, PartedModel, encode_folder, image_encoding

LAYERS, WIDTH, HEADS, SIDE, PATCH = 3, 64, 4, 96, 16
ENCODING = image_encoding(SIDE, mode="L")
WEIGHTS = "vit_ramps.pt"


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x, rows=None):
        """The first ``rows`` rows ``[B, rows, WIDTH]`` of the layer's output for ``x [B, L, WIDTH]``. By default all rows."""
        normed = self.norm(x)
        q, k, v = (
            each.unflatten(2, (HEADS, -1)).transpose(1, 2)
            for each in (self.query(normed[:, :rows]), self.key(normed), self.value(normed))
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x[:, :rows] + self.out(mixed)
        return x + self.mlp(self.after(x))


class ViTWithRamps(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.first = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + (SIDE // PATCH) ** 2, WIDTH))
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.ramps = nn.ModuleList(nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, classes)) for _ in range(LAYERS))

    def embed(self, pixel_values):
        rows = self.patches(pixel_values).flatten(2).transpose(1, 2)
        return torch.cat([self.first.expand(len(rows), -1, -1), rows], 1) + self.positions

    def forward(self, pixel_values):
        x, logits = self.embed(pixel_values), {}
        for k, (layer, ramp) in enumerate(zip(self.layers, self.ramps, strict=True), 1):
            x = layer(x)
            logits[f"layer.{k}"] = ramp(x[:, 0])
        return logits


def train(folder, epochs=40):
    pages = encode_folder(folder, ENCODING)
    labels, targets = np.unique(pages["label"], return_inverse=True)
    targets = torch.from_numpy(targets)
    pixels = torch.from_numpy(pages["pixel_values"])
    torch.manual_seed(0)
    net = ViTWithRamps(len(labels)).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(targets)).split(32):
            loss = sum(nn.functional.cross_entropy(each, targets[rows]) for each in net(pixels[rows]).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.save({"weights": net.state_dict(), "labels": labels.tolist()}, WEIGHTS)


def make_model():
    saved = torch.load(WEIGHTS, weights_only=True)
    net = ViTWithRamps(len(saved["labels"])).eval()
    net.load_state_dict(saved["weights"])
    parts = [Part(("pixel_values",), ("rows.0",), net.embed)]
    for k, (layer, ramp) in enumerate(zip(net.layers, net.ramps, strict=True), 1):
        parts.append(Part((f"rows.{k - 1}",), (f"first.{k}",), partial(layer, rows=1)))
        parts.append(Part((f"first.{k}",), (f"layer.{k}.logits",), lambda first, ramp=ramp: ramp(first[:, 0])))
        parts.append(Part((f"rows.{k - 1}",), (f"rows.{k}",), layer))
    return PartedModel(
        parts=parts,
        exits=[f"layer.{k}" for k in range(1, LAYERS + 1)],
        labels=saved["labels"],
        module=net,
        encoding=ENCODING,
        reference=net,
    )


if __name__ == "__main__":
    train(sys.argv[1])
