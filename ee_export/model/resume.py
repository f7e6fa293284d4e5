"""Save the state of a training run, from which a killed run resumes, as safetensors and JSON, without pickles."""

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

from ee_export.errors import BadRequest, shorten
from ee_export.model.best import Best
from ee_export.model.early_exit import EarlyExitModel
from ee_export.package.atomic import staged_folder

_BEST = ("loss", "accuracy", "waited")
"""Figures of the best epoch."""


class SavedRun:
    """The saved state of a run in ``<out>.partial``.

    Weights, optimizer moments and the best epoch's weights are safetensors, the rest is JSON."""

    def __init__(self, folder: Path, identity: dict[str, Any], every_s: float = 60.0) -> None:
        self.folder = folder
        self._identity = identity
        self._every_s = float(os.environ.get("EE_TRAIN_SAVE_S", every_s))
        self._last = time.monotonic()

    def read(self) -> dict[str, Any] | None:
        """Read the figures of the partial run, ``None`` if there is no such run.

        Raises:
            BadRequest: it belongs to another run or is damaged.
        """
        if not self.folder.exists():
            return None
        try:
            state: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
            same = state["identity"] == self._identity
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damage_error(error) from None
        if not same:
            raise BadRequest(
                f"{self.folder}: belongs to a run with another recipe or other data; remove it or name another --out"
            )
        return state

    def restore(self, model: EarlyExitModel, optimizers: list[torch.optim.AdamW]) -> tuple[int, Best]:
        """Restore the state. Returns the steps already done, and the best epoch of the stage in which they end.

        Raises:
            BadRequest: the partial run belongs to another run or is damaged.
        """
        state = self.read()
        if state is None:
            return 0, Best()
        try:
            model.load_state_dict(load_file(self.folder / "model.safetensors"))
            moments = load_file(self.folder / "optimizer.safetensors")
            best = Best(weights=load_file(self.folder / "best.safetensors"))
            for name in _BEST:
                setattr(best, name, state["best"][name])
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise self._damage_error(error) from None
        for number, optimizer in enumerate(optimizers):
            for place, weight in enumerate(optimizer.param_groups[0]["params"]):
                prefix = f"{number}.{place}."
                own = {key.removeprefix(prefix): value for key, value in moments.items() if key.startswith(prefix)}
                if own:
                    # AdamW keeps the count of steps on the CPU.
                    optimizer.state[weight] = {
                        key: value if key == "step" else value.to(weight.device) for key, value in own.items()
                    }
        return int(state["steps"]), best

    def save_sometimes(
        self, steps: int, model: EarlyExitModel, optimizers: list[torch.optim.AdamW], best: Best
    ) -> None:
        """Write the state if the last write is a minute ago (``EE_TRAIN_SAVE_S`` seconds)."""
        if time.monotonic() - self._last < self._every_s:
            return
        with staged_folder(self.folder, overwrite=True) as staging:
            save_file(
                {name: value.contiguous() for name, value in model.state_dict().items()}, staging / "model.safetensors"
            )
            save_file(dict(_moments(optimizers)), staging / "optimizer.safetensors")
            save_file(best.weights, staging / "best.safetensors")
            figures = {name: getattr(best, name) for name in _BEST}
            state = {"steps": steps, "identity": self._identity, "best": figures}
            (staging / "state.json").write_text(json.dumps(state))
        self._last = time.monotonic()

    def _damage_error(self, error: Exception) -> BadRequest:
        return BadRequest(f"{self.folder}: damaged ({shorten(error)}); remove it to begin again")

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _moments(optimizers: list[torch.optim.AdamW]) -> Iterator[tuple[str, Tensor]]:
    for number, optimizer in enumerate(optimizers):
        for place, weight in enumerate(optimizer.param_groups[0]["params"]):
            for key, value in optimizer.state.get(weight, {}).items():
                yield f"{number}.{place}.{key}", value.contiguous()
