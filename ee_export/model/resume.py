"""Where a training run stands, so that a killed one goes on: safetensors and JSON, never pickle."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ee_export.atomic import staged_folder
from ee_export.errors import BadRequest
from ee_export.model.early_exit import EarlyExitModel


class Saved:
    """Where a run stands, in ``<out>.partial``: weights and optimizer moments as safetensors, the rest as JSON."""

    def __init__(self, folder: Path, identity: dict[str, Any], every_s: float = 60.0) -> None:
        self.folder = folder
        self._identity = identity
        self._every_s = float(os.environ.get("EE_TRAIN_SAVE_S", every_s))
        self._last = time.monotonic()

    def restore(self, model: EarlyExitModel, optimizers: list[torch.optim.AdamW]) -> int:
        """Steps already done; raises BadRequest where the partial run is another one's or damaged."""
        if not self.folder.exists():
            return 0
        try:
            state = json.loads((self.folder / "state.json").read_text())
            if state["identity"] != self._identity:
                raise BadRequest(
                    f"{self.folder}: belongs to a run with another recipe or other data; remove it or name another --out"
                )
            model.load_state_dict(load_file(self.folder / "model.safetensors"))
            moments = load_file(self.folder / "optimizer.safetensors")
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise BadRequest(f"{self.folder}: damaged ({error}); remove it to begin again") from None
        for number, optimizer in enumerate(optimizers):
            for at, weight in enumerate(optimizer.param_groups[0]["params"]):
                prefix = f"{number}.{at}."
                found = {key.removeprefix(prefix): value for key, value in moments.items() if key.startswith(prefix)}
                if found:
                    optimizer.state[weight] = found
        return int(state["steps"])

    def save_sometimes(self, steps: int, model: EarlyExitModel, optimizers: list[torch.optim.AdamW]) -> None:
        """Write the state if the last time is a minute ago (``EE_TRAIN_SAVE_S`` seconds)."""
        if time.monotonic() - self._last < self._every_s:
            return
        with staged_folder(self.folder, overwrite=True) as staging:
            save_file(
                {name: value.contiguous() for name, value in model.state_dict().items()}, staging / "model.safetensors"
            )
            save_file(dict(_moments(optimizers)), staging / "optimizer.safetensors")
            (staging / "state.json").write_text(json.dumps({"steps": steps, "identity": self._identity}))
        self._last = time.monotonic()

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _moments(optimizers: list[torch.optim.AdamW]) -> Iterator[tuple[str, Tensor]]:
    for number, optimizer in enumerate(optimizers):
        for at, weight in enumerate(optimizer.param_groups[0]["params"]):
            for key, value in optimizer.state.get(weight, {}).items():
                yield f"{number}.{at}.{key}", value.contiguous()
