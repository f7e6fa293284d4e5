"""Exit heads: ramps over pooled features, and the convolutional head of the vision exit."""

import torch
from torch import Tensor, nn

from ee_export.model.exits import HeadSpec


def masked_mean(rows: Tensor, mask: Tensor) -> Tensor:
    """Average of ``rows [B, L, H]`` over the positions with nonzero ``mask [B, L]``, as ``[B, H]``."""
    weight = mask.to(rows.dtype).unsqueeze(-1)
    return (rows * weight).sum(1) / weight.sum(1)


class Ramp(nn.Module):
    """Class logits from pooled features ``[B, H]``, by one linear layer or two with a tanh between them.

    Two layers form the RoBERTa classification head that LayoutLMv3 uses for ``final``.
    """

    def __init__(self, hidden_size: int, num_labels: int, spec: HeadSpec) -> None:
        super().__init__()
        self.dropout = nn.Dropout(spec.dropout)
        self.dense = nn.Linear(hidden_size, hidden_size) if spec.layers == 2 else None
        self.out_proj = nn.Linear(hidden_size, num_labels)

    def forward(self, features: Tensor) -> Tensor:
        features = self.dropout(features)
        if self.dense is not None:
            features = self.dropout(torch.tanh(self.dense(features)))
        return self.out_proj(features)


class Gate(nn.Module):
    """A go/stop logit ``[B, 1]`` from pooled features ``[B, H]``, and class logits if they are the head's own.

    The gate's gradient does not reach the features, so learning when to stop does not change the answers.
    """

    def __init__(self, hidden_size: int, num_labels: int, spec: HeadSpec) -> None:
        super().__init__()
        self.ramp = None if spec.by_final else Ramp(hidden_size, num_labels, spec)
        self.gate = None if spec.shared else nn.Linear(hidden_size, 1)


class PixelRamp(nn.Module):
    """Class logits directly from ``pixel_values [B, 3, S, S]``, by five stride-2 convolutions and a small classifier.

    The classifier reads all cells of the last feature map, because forms differ in the places of their boxes and lines,
    which an average loses (`docs/explanation/studies.md`).
    """

    def __init__(self, image_size: int, num_labels: int, spec: HeadSpec, hidden: int = 128) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for step, multiple in enumerate((1, 2, 4, 6, 8)):
            out = spec.width * multiple
            kernel = 3 if step else 5
            layers += [
                nn.Conv2d(channels, out, kernel, stride=2, padding=kernel // 2, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(),
            ]
            channels = out
        self.trunk = nn.Sequential(*layers, nn.Conv2d(channels, 2 * spec.width, 1), nn.ReLU())
        cells = (-(-image_size // 32)) ** 2
        self.dropout = nn.Dropout(spec.dropout)
        self.dense = nn.Linear(2 * spec.width * cells, hidden)
        self.out_proj = nn.Linear(hidden, num_labels)

    def forward(self, pixel_values: Tensor) -> Tensor:
        features = self.dropout(self.trunk(pixel_values).flatten(1))
        return self.out_proj(self.dropout(torch.relu(self.dense(features))))
