"""Train ramps on features that an unchanged ONNX graph computes for labelled pages."""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from ee_export.model.exits import HeadSpec
from ee_export.model.heads import Ramp
from ee_export.model.train_heads import HeadTraining, train_heads

Layers = list[tuple[np.ndarray, np.ndarray]]
"""Weights and biases of linear layers in order, float32 ``[outputs, inputs]`` and ``[outputs]``."""


def train_ramps(
    features: Mapping[str, np.ndarray],
    targets: np.ndarray,
    val_features: Mapping[str, np.ndarray],
    val_targets: np.ndarray,
    layers: Mapping[str, int],
    classes: int,
    training: HeadTraining,
    progress: Callable[[int, int, str], None],
) -> tuple[dict[str, Layers], dict[str, float]]:
    """Train a ramp for every exit, see :func:`~ee_export.model.train_heads.train_heads`.

    Args:
        features: float32 ``[N, F]`` per exit. They are standardised for training, and the first layer's weights are
            adapted to raw features afterwards.
        targets: indices of labels, int64 ``[N]``.
        val_features: of the validation pages, ``[M, F]`` per exit.
        val_targets: labels of the validation pages, ``[M]``.
        layers: 1 or 2 per exit.
        classes: number of labels.
        training: the hyperparameters.
        progress: called after every epoch.

    Returns:
        The layers per exit for raw features, and validation accuracy per exit, 0–1.
    """
    keys = {name: f"ramp{index}" for index, name in enumerate(features)}
    means = {name: values.mean(0) for name, values in features.items()}
    deviations = {name: np.maximum(values.std(0), 1e-3 * (values.std() + 1e-6)) for name, values in features.items()}

    def standardise(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {
            keys[name]: ((features_of_exit - means[name]) / deviations[name]).astype(np.float32)
            for name, features_of_exit in values.items()
        }

    torch.manual_seed(training.seed)
    ramps = _Ramps({keys[name]: (values.shape[1], layers[name]) for name, values in features.items()}, classes)
    accuracy = train_heads(
        ramps, standardise(features), targets, standardise(val_features), val_targets, training, progress
    )
    return (
        {name: _fold_standardisation(ramps.layers(key), means[name], deviations[name]) for name, key in keys.items()},
        {name: accuracy[key] for name, key in keys.items()},
    )


def make_zero_layers(inputs: int, layers: int, classes: int) -> Layers:
    """Make layers of zeros, as placeholders for those of a ramp before training."""
    sizes = [(inputs, inputs)] * (layers - 1) + [(classes, inputs)]
    return [(np.zeros(size, np.float32), np.zeros(size[0], np.float32)) for size in sizes]


def compute_logits(layers: Sequence[tuple[np.ndarray, np.ndarray]], features: np.ndarray) -> np.ndarray:
    """Compute a ramp's logits ``[B, C]`` for features ``[B, F]`` with torch."""
    values = torch.from_numpy(features)
    for index, (weight, bias) in enumerate(layers):
        values = nn.functional.linear(
            torch.tanh(values) if index else values, torch.from_numpy(weight), torch.from_numpy(bias)
        )
    return np.asarray(values.numpy())


class _Ramps(nn.Module):
    """Ramps with the weight names that :func:`train_heads` expects of an exit's head."""

    def __init__(self, sizes: Mapping[str, tuple[int, int]], classes: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_labels=classes)
        self.exits = nn.ModuleDict(
            {key: Ramp(inputs, classes, HeadSpec(layers=layers)) for key, (inputs, layers) in sizes.items()}
        )

    def answer(self, exit_name: str, features: Tensor) -> tuple[Tensor]:
        """Logits ``[B, C]`` of an exit."""
        return (self.exits[exit_name](features),)

    def layers(self, key: str) -> Layers:
        ramp = self.exits[key]
        assert isinstance(ramp, Ramp)
        linear = [layer for layer in (ramp.dense, ramp.out_proj) if layer is not None]
        return [(layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()) for layer in linear]


def _fold_standardisation(layers: Layers, mean: np.ndarray, deviation: np.ndarray) -> Layers:
    """Fold the standardisation of features into the first layer, so that it reads raw features."""
    (weight, bias), *rest = layers
    scaled = weight / deviation
    return [(scaled.astype(np.float32), (bias - scaled @ mean).astype(np.float32)), *rest]
