"""Train the heads of exits on the features of a frozen trunk. No other weight changes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ee_export.model.best import Best, class_weights, cross_entropy
from ee_export.model.strategies import head_prefix

Progress = Callable[[int, int, str], None]
"""Called with epochs done, epochs at most, and a line about the last one."""


class HasHeads(Protocol):
    """A module with heads at exits.

    A head's weight names begin with :func:`~ee_export.model.strategies.head_prefix`.
    """

    config: Any

    def answer(self, exit_name: str, features: Tensor) -> tuple[Tensor, ...]:
        """Logits of an exit ``[B, C]``, followed by other outputs of its head, for features ``[B, F]``."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]: ...

    def train(self) -> Any: ...

    def eval(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class HeadTraining:
    """Hyperparameters of the heads, for AdamW with a learning rate that falls to 0 along a cosine.

    ``vision_epochs``: epochs of the exit ``vision``, whose head reads pixels and is trained separately. ``patience``:
    number of epochs without a lower validation loss of any exit after which training ends. ``balanced``: true if all
    classes count the same in the loss, false if all pages do. ``bf16``: true to compute the trunk, and the head of
    ``vision`` in training, in bfloat16 if the device supports it.
    """

    epochs: int = 60
    vision_epochs: int = 30
    patience: int = 10
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    balanced: bool = True
    bf16: bool = False
    seed: int = 0


def train_heads(
    model: HasHeads,
    features: Mapping[str, np.ndarray],
    targets: np.ndarray,
    val_features: Mapping[str, np.ndarray],
    val_targets: np.ndarray,
    training: HeadTraining,
    progress: Progress,
) -> dict[str, float]:
    """Train the heads of some exits, and keep the weights of each from its epoch with the lowest validation loss.

    Args:
        model: its heads are changed in place, on their device.
        features: float32 ``[N, H]`` per exit.
        targets: index of each page's label, int64 ``[N]``.
        val_features: of the validation pages, ``[M, H]`` per exit.
        val_targets: labels of the validation pages, ``[M]``.
        training: the hyperparameters.
        progress: called after every epoch.

    Returns:
        Validation accuracy per exit, 0–1.
    """
    exits = list(features)
    weights = {name: _own_weights(model, name) for name in exits}
    optimizer = torch.optim.AdamW(
        [weight for own in weights.values() for weight in own.values()],
        training.learning_rate,
        weight_decay=training.weight_decay,
    )
    device = _device_of(model)
    balance = class_weights(targets, model.config.num_labels).to(device) if training.balanced else None
    best = {name: Best() for name in exits}
    labels = torch.from_numpy(targets).to(device)
    steps = max(1, -(-len(targets) // training.batch_size))
    for epoch in range(training.epochs):
        rng = np.random.default_rng([training.seed, epoch])
        torch.manual_seed(int(rng.integers(2**31)))
        model.train()
        order = rng.permutation(len(targets))
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = (
                    training.learning_rate * 0.5 * (1 + np.cos(np.pi * (epoch + step / steps) / training.epochs))
                )
            rows = np.sort(order[step * training.batch_size : (step + 1) * training.batch_size])
            loss = torch.stack(
                [
                    cross_entropy(
                        _logits(model, name, features[name][rows]), labels[rows], balance, training.label_smoothing
                    )
                    for name in exits
                ]
            ).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        for name, (val_loss, share) in _evaluate(model, val_features, val_targets, balance).items():
            best[name].note(val_loss, share, weights[name])
        line = ", ".join(f"{name} {kept.accuracy:.3f}" for name, kept in best.items())
        progress(epoch + 1, training.epochs, f"epoch {epoch + 1}, best val accuracy: {line}")
        if min(kept.waited for kept in best.values()) >= training.patience:
            break
    for name, kept in best.items():
        kept.restore(weights[name])
    model.eval()
    return {name: kept.accuracy for name, kept in best.items()}


@torch.no_grad()
def _evaluate(
    model: HasHeads, features: Mapping[str, np.ndarray], targets: np.ndarray, balance: Tensor | None
) -> dict[str, tuple[float, float]]:
    """Loss and accuracy per exit."""
    model.eval()
    labels = torch.from_numpy(targets).to(_device_of(model))
    result = {}
    for name, values in features.items():
        logits = torch.cat(
            [_logits(model, name, values[begin : begin + 1024]) for begin in range(0, len(values), 1024)]
        )
        loss = float(cross_entropy(logits, labels, balance))
        result[name] = loss, float((logits.argmax(1) == labels).float().mean())
    return result


def _logits(model: HasHeads, exit_name: str, values: np.ndarray) -> Tensor:
    return model.answer(exit_name, torch.from_numpy(np.array(values)).to(_device_of(model)))[0]


def _device_of(model: HasHeads) -> torch.device:
    _, weight = next(model.named_parameters())
    return weight.device


def _own_weights(model: HasHeads, exit_name: str) -> dict[str, torch.nn.Parameter]:
    prefix = head_prefix(exit_name)
    return {name: weight for name, weight in model.named_parameters() if name.startswith(prefix)}
