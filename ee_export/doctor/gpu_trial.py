"""What `doctor --gpu` tries, made of the toolkit's own parts: engines by their recipes, and every executor over them."""

import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from ee_export.data.encode import Arrays
from ee_export.doctor.examine import EXECUTORS
from ee_export.doctor.replay import BATCHES, Executor, text_known
from ee_export.doctor.trial import Rig
from ee_export.doctor.trial_package import compiled, whole
from ee_export.errors import DeviceError
from ee_export.package.manifest import FULL, OperatingPoint
from ee_export.package.store import Package
from ee_export.runtime import backends
from ee_export.runtime.gpu.buffers import TensorArena
from ee_export.runtime.gpu.executors.choose import make_chain
from ee_export.runtime.gpu.executors.device_chain import ExitPolicy, run_chain
from ee_export.runtime.gpu.open import open_package_segments
from ee_export.runtime.gpu.sizes import Sizes
from ee_export.runtime.plan import make_rules, operating_point
from ee_export.verify import golden


def rig() -> Rig:
    return Rig(compiled, {kind: partial(OnGpu, kind) for kind in EXECUTORS}, one_engine)


class OnGpu:
    """An executor of one kind over a package's target, on the first GPU; see :class:`~ee_export.doctor.replay.Executor`.

    It is ready for the text lengths of the golden pages and for :data:`~ee_export.doctor.replay.BATCHES`.
    """

    def __init__(self, kind: str, package: Package, target_name: str) -> None:
        self._package = package
        self._target = package.target(target_name)
        self._closing = ExitStack()
        try:
            self._open(kind, target_name)
        except BaseException:
            self.close()
            raise

    def _open(self, kind: str, target_name: str) -> None:
        device = backends.open_gpu()
        self._closing.enter_context(device.current())
        stream = device.create_stream()
        self._closing.callback(device.destroy_stream, stream)
        segments = open_package_segments(self._package, target_name, device, stream)
        pages = [page.inputs for page in golden.read(self._package)[0]]
        lengths = {page["input_ids"].shape[1] for page in pages if "input_ids" in page}
        visual = int(self._target.compiled["visual_tokens"])
        buffers = TensorArena(device, segments, Sizes(BATCHES, tuple(sorted(lengths)), visual), stream)
        self._closing.callback(buffers.close)
        self._point = operating_point(self._target, FULL)
        self._executor = make_chain(kind, buffers, self._policy(self._point), ((0, len(segments)),))
        self._closing.callback(self._executor.close)

    def run(self, inputs: Arrays, point: OperatingPoint) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`ee_export.doctor.replay.Executor.run`."""
        if point is not self._point:
            self._executor.retune(self._policy(point))
            self._point = point
        rows = len(next(iter(inputs.values())))
        tokens = np.array(text_known(inputs, self._executor.policy.rules)) if point.weights else None
        left = run_chain(self._executor, inputs, rows, tokens)
        exits = [one.exit for one in left if one.exit is not None]
        assert len(exits) == rows  # the last exit always answers
        for page, exit in enumerate(exits):
            if exit < 0:
                name = self._package.manifest.exits[-1 - exit]
                raise DeviceError(f"page {page}: logits at {name} are not finite: {left[page].logits[-1].tolist()}")
        return np.array(exits), np.stack([one.logits[-1] for one in left])

    def close(self) -> None:
        self._closing.close()

    def _policy(self, point: OperatingPoint) -> ExitPolicy:
        manifest = self._package.manifest
        return ExitPolicy.of(point, make_rules(manifest, self._target, point.weights), manifest.exits)


class _InFolder:
    """An executor, and the folder that its package lies in."""

    def __init__(self, executor: Executor, folder: tempfile.TemporaryDirectory[str]) -> None:
        self.run = executor.run
        self._executor = executor
        self._folder = folder

    def close(self) -> None:
        with self._folder:
            self._executor.close()


def one_engine(package: Package, target_name: str) -> Executor:
    """The whole model as one engine of the same recipe, captured where its backend can be: what a chain is measured against."""
    folder = tempfile.TemporaryDirectory(prefix="ee-whole-")
    try:
        one = compiled(whole(package, Path(folder.name) / "whole.ee"), target_name, lambda *_: None)
        kind = "graphs" if target_name.startswith("tensorrt-") else "host"
        return _InFolder(OnGpu(kind, one, target_name), folder)
    except BaseException:
        folder.cleanup()
        raise
