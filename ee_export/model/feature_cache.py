"""Cache the features that heads read, computed once by a frozen trunk, in memory-mapped files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor
from torch.utils.data import Dataset

from ee_export.data.encode import Arrays, Encoder
from ee_export.data.labelled import Labelled
from ee_export.errors import DeviceError, EeError, shorten
from ee_export.model.device import autocast
from ee_export.model.early_exit import EarlyExitModel
from ee_export.model.loader import load_items
from ee_export.model.pages import read_contents
from ee_export.progress import PageProgress

_BATCH = 8
"""Pages per batch of the trunk."""
_STEP = 64
"""Pages per step, after which progress is saved. Pages are sorted by length within a step."""


def cache_features(
    model: EarlyExitModel,
    encoder: Encoder,
    data: Labelled,
    folder: Path,
    identity: str,
    progress: PageProgress,
    *,
    workers: int = 0,
    bf16: bool = False,
) -> dict[str, np.ndarray]:
    """Compute every page's features for all exits but ``final``, float32 ``[N, H]`` per exit, memory-mapped.

    An interrupted run resumes at its last step.

    Args:
        model: on the device that computes. Its trunk computes the features, by the unmodified forward pass of
            transformers.
        encoder: encodes pages for it.
        data: the pages.
        folder: folder of the files.
        identity: identifies the trunk, the encoding and the pages. Another identity starts the cache over.
        progress: called after every step of pages.
        workers: processes that read and encode pages, 0 for this process alone.
        bf16: see :func:`~ee_export.model.device.autocast`.

    Raises:
        BadPage: a page cannot be read.
        BadData: a page has no words, and the model reads words.
        DeviceError: a batch of pages does not fit into a GPU's memory.
    """
    exits = [name for name in model.config.exit_names()[:-1] if model.feature(name) != "pixels"]
    if not exits:
        return {}  # no head reads the trunk
    state = folder / "state.json"
    done = _count_pages_done(state, identity, exits, len(data))
    mode = "r+" if done else "w+"
    arrays: dict[str, np.ndarray] = {}
    steps = range(done, len(data), _STEP)
    pin = model.device.type == "cuda"
    for begin, batches in zip(steps, load_items(_Batches(data, encoder, model), steps, workers, pin=pin), strict=True):
        if isinstance(batches, EeError):
            raise batches
        folder.mkdir(parents=True, exist_ok=True)  # created after the first page is read
        done = min(begin + _STEP, len(data))
        for places, inputs in batches:
            for name, values in _compute_features(model, inputs, bf16).items():
                if name not in arrays:
                    shape = (len(data), values.shape[1])
                    arrays[name] = open_memmap(folder / f"{name}.npy", mode, np.float32, None if begin else shape)
                arrays[name][[begin + place for place in places]] = values
        for array in arrays.values():
            array.flush()  # type: ignore[attr-defined]
        state.write_text(json.dumps({"identity": identity, "exits": exits, "done": done}))
        progress(done, len(data))
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in exits}


def _count_pages_done(state: Path, identity: str, exits: list[str], pages: int) -> int:
    """Count the pages with saved features. 0 if they belong to another identity, or a file is damaged."""
    try:
        content = json.loads(state.read_text())
        shapes = [np.load(state.with_name(f"{name}.npy"), mmap_mode="r").shape for name in exits]
        same = (
            content["identity"] == identity and content["exits"] == exits and all(len(shape) == 2 for shape in shapes)
        )
        return int(content["done"]) if same and {shape[0] for shape in shapes} == {pages} else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


class _Batches(Dataset[Any]):
    """The pages of a step in batches of similar length, as places in the step and inputs, or the error of a page."""

    def __init__(self, data: Labelled, encoder: Encoder, model: EarlyExitModel) -> None:
        self.data, self.encoder, self.model = data, encoder, model

    def __getitem__(self, begin: int) -> list[tuple[list[int], dict[str, Tensor]]] | EeError:
        images, texts = [], []
        for row in range(begin, min(begin + _STEP, len(self.data))):
            try:
                image, words, boxes = read_contents(self.data, row, self.encoder, self.model)
                texts.append(self.encoder.text(words, boxes))
            except EeError as error:  # returned, because an error raised in a worker gets a traceback in its text
                return error
            images.append(image)
        order = sorted(range(len(texts)), key=lambda index: texts[index]["input_ids"].shape[1])
        return [self._batch(images, texts, order[index : index + _BATCH]) for index in range(0, len(order), _BATCH)]

    def _batch(self, images: list[Any], texts: list[Arrays], places: list[int]) -> tuple[list[int], dict[str, Tensor]]:
        inputs = self.encoder.collate([texts[index] for index in places])
        if self.model.reads("image"):
            inputs = inputs | self.encoder.images([images[index] for index in places])
        return places, {name: torch.from_numpy(inputs[name]) for name in self.model.INPUTS}


@torch.no_grad()
def _compute_features(model: EarlyExitModel, inputs: dict[str, Tensor], bf16: bool) -> dict[str, np.ndarray]:
    """Compute the features of a batch of pages, float32 ``[B, H]`` per exit with a head that reads the trunk."""
    try:
        with autocast(model.device, bf16=bf16):
            features = model.features(
                **{name: value.to(model.device, non_blocking=True) for name, value in inputs.items()}
            )
        return {
            name: values.float().to("cpu").numpy()
            for name, values in features.items()
            if name != "final" and model.feature(name) != "pixels"
        }
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"--device {model.device.type}: a batch of {_BATCH} pages does not fit ({shorten(error)}); free some of its memory, or "
            "pass --device cpu"
        ) from None
