"""The setup of `doctor --gpu` from the toolkit's own parts: engines by their recipes, and every executor on them."""

import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from ee_export.data.encode import Arrays
from ee_export.doctor.checks import EXECUTORS
from ee_export.doctor.replay import BATCHES, TrialExecutor, count_tokens
from ee_export.doctor.trial import TrialSetup
from ee_export.doctor.trial_package import build_one_segment, compile_for_trial
from ee_export.errors import DeviceError
from ee_export.package.manifest import FULL, OperatingPoint
from ee_export.package.store import Package
from ee_export.runtime import gpu_targets
from ee_export.runtime.backends import BACKENDS
from ee_export.runtime.gpu.buffers import TensorArena
from ee_export.runtime.gpu.executors.choose import make_chain
from ee_export.runtime.gpu.executors.device_chain import ExitPolicy, run_chain
from ee_export.runtime.gpu.open import open_package_segments
from ee_export.runtime.gpu.sizes import Sizes
from ee_export.runtime.plan import make_rules, operating_point
from ee_export.verify import golden


def make_setup() -> TrialSetup:
    """The parts of the trial on this GPU."""
    return TrialSetup(compile_for_trial, {kind: partial(GpuTrialExecutor, kind) for kind in EXECUTORS}, open_one_engine)


class GpuTrialExecutor:
    """A :class:`~ee_export.doctor.replay.TrialExecutor` of one kind for a package's target, on the first GPU.

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
        device = gpu_targets.open_gpu(0)
        self._closing.enter_context(device.current())
        stream = device.create_stream()
        self._closing.callback(device.destroy_stream, stream)
        open_on_device = BACKENDS.find(self._target.backend).open_on_device
        assert open_on_device is not None
        segments = open_package_segments(self._package, target_name, open_on_device, device, stream)
        pages = [page.inputs for page in golden.read(self._package)[0]]
        lengths = {page["input_ids"].shape[1] for page in pages if "input_ids" in page}
        visual = self._target.gpu_build.visual_tokens
        buffers = TensorArena(device, segments, Sizes(BATCHES, tuple(sorted(lengths)), visual), stream)
        self._closing.callback(buffers.close)
        self._point = operating_point(self._target, FULL)
        self._executor = make_chain(kind, buffers, self._policy(self._point), ((0, len(segments)),))
        self._closing.callback(self._executor.close)

    def run(self, inputs: Arrays, point: OperatingPoint) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`ee_export.doctor.replay.TrialExecutor.run`."""
        if point is not self._point:
            self._executor.retune(self._policy(point))
            self._point = point
        rows = len(next(iter(inputs.values())))
        tokens = np.array(count_tokens(inputs, self._executor.policy.rules)) if point.weights else None
        results = run_chain(self._executor, inputs, rows, tokens)
        exits = [result.exit for result in results if result.exit is not None]
        assert len(exits) == rows  # the last exit always answers
        for page, exit in enumerate(exits):
            if exit < 0:
                name = self._package.manifest.exits[-1 - exit]
                raise DeviceError(f"page {page}: logits at {name} are not finite: {results[page].logits[-1].tolist()}")
        return np.array(exits), np.stack([result.logits[-1] for result in results])

    def close(self) -> None:
        self._closing.close()

    def _policy(self, point: OperatingPoint) -> ExitPolicy:
        manifest = self._package.manifest
        return ExitPolicy.of(point, make_rules(manifest, self._target, point.weights), manifest.exits)


class _ExecutorInFolder:
    """An executor with the temporary folder of its package."""

    def __init__(self, executor: TrialExecutor, folder: tempfile.TemporaryDirectory[str]) -> None:
        self.run = executor.run
        self._executor = executor
        self._folder = folder

    def close(self) -> None:
        with self._folder:
            self._executor.close()


def open_one_engine(package: Package, target_name: str) -> TrialExecutor:
    """Open the full model as one engine of the same recipe, captured if its backend can be captured."""
    folder = tempfile.TemporaryDirectory(prefix="ee-whole-")
    try:
        engine = compile_for_trial(
            build_one_segment(package, Path(folder.name) / "whole.ee"), target_name, lambda *_: None
        )
        kind = "graphs" if target_name.startswith("tensorrt-") else "host"
        return _ExecutorInFolder(GpuTrialExecutor(kind, engine, target_name), folder)
    except BaseException:
        folder.cleanup()
        raise
