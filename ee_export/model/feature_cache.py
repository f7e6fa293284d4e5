"""Features of labelled pages that heads read, computed once by a frozen trunk and kept in memory-mapped files."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap

from ee_export.encode import Encoder
from ee_export.model.early_exit import EarlyExitModel
from ee_export.model.labelled import Labelled
from ee_export.model.pages import read_contents

Progress = Callable[[int, int], None]
"""Called with pages done and pages in all."""

_BATCH = 8
"""Pages that go through the trunk together."""
_STEP = 64
"""Pages after which what is done is written down. They are sorted by length within such a step."""


def cache_features(
    model: EarlyExitModel, encoder: Encoder, data: Labelled, folder: Path, identity: str, progress: Progress
) -> dict[str, np.ndarray]:
    """Features of every page for the head of every exit but ``final``, float32 ``[N, H]`` per exit, memory-mapped.

    A run that was interrupted goes on where it stopped.

    Args:
        model: its trunk computes the features, by the unmodified forward pass of transformers.
        encoder: encodes pages for it.
        data: the pages.
        folder: where the files are kept.
        identity: changes with the trunk, the encoding and the pages; another one begins anew.
        progress: called after every step of pages.

    Raises:
        BadPage: a page cannot be read.
        BadData: a page has no words, and the model reads words.
    """
    exits = [name for name in model.config.exit_names()[:-1] if model.feature(name) != "pixels"]
    if not exits:
        return {}  # no head reads the trunk
    state = folder / "state.json"
    done = _pages_done(state, identity, exits, len(data))
    mode = "r+" if done else "w+"
    arrays: dict[str, np.ndarray] = {}
    folder.mkdir(parents=True, exist_ok=True)
    while done < len(data):
        rows = range(done, min(done + _STEP, len(data)))
        for name, values in _features(model, encoder, data, list(rows)).items():
            if name not in arrays:
                shape = (len(data), values.shape[1])
                arrays[name] = open_memmap(folder / f"{name}.npy", mode, np.float32, None if done else shape)
            arrays[name][rows.start : rows.stop] = values
        for array in arrays.values():
            array.flush()  # type: ignore[attr-defined]
        done = rows.stop
        state.write_text(json.dumps({"identity": identity, "exits": exits, "done": done}))
        progress(done, len(data))
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in exits}


def _pages_done(state: Path, identity: str, exits: list[str], pages: int) -> int:
    """Pages whose features are kept, 0 if they are another's or a file of them is damaged."""
    try:
        content = json.loads(state.read_text())
        shapes = [np.load(state.with_name(f"{name}.npy"), mmap_mode="r").shape for name in exits]
        same = (
            content["identity"] == identity and content["exits"] == exits and all(len(shape) == 2 for shape in shapes)
        )
        return int(content["done"]) if same and {shape[0] for shape in shapes} == {pages} else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


@torch.no_grad()
def _features(model: EarlyExitModel, encoder: Encoder, data: Labelled, rows: list[int]) -> dict[str, np.ndarray]:
    """Features of some pages, ``[rows, H]`` per exit."""
    images, texts = [], []
    for row in rows:
        image, words, boxes = read_contents(data, row, encoder, model)
        images.append(image)
        texts.append(encoder.text(words, boxes))
    result: dict[str, np.ndarray] = {}
    order = sorted(range(len(rows)), key=lambda at: texts[at]["input_ids"].shape[1])
    for begin in range(0, len(order), _BATCH):
        places = order[begin : begin + _BATCH]
        inputs = encoder.collate([texts[at] for at in places])
        if model.reads("image"):
            inputs = inputs | encoder.images([images[at] for at in places])
        tensors = {name: torch.from_numpy(inputs[name]) for name in model.INPUTS}
        for name, values in model.features(**tensors).items():
            if name != "final" and model.feature(name) != "pixels":
                if name not in result:
                    result[name] = np.empty((len(rows), values.shape[1]), np.float32)
                result[name][places] = values.numpy()
    return result
