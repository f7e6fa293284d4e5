"""Segments as engines of TensorRT 10 and 11. This module is imported only for targets that need it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import tensorrt as trt

from ee_export.errors import BadPackage, BadRequest, DeviceError
from ee_export.package.manifest import SegmentSpec, TensorSpec
from ee_export.runtime.gpu.sizes import shape_of
from ee_export.runtime.gpu.tensorrt_log import LOG, last_errors
from ee_export.runtime.gpu.workspace import Workspace

DTYPES = {
    "float32": trt.DataType.FLOAT,
    "float16": trt.DataType.HALF,
    "bfloat16": trt.DataType.BF16,
    "int64": trt.DataType.INT64,
    "int32": trt.DataType.INT32,
    "int8": trt.DataType.INT8,
    "uint8": trt.DataType.UINT8,
    "bool": trt.DataType.BOOL,
}
_AXES = {"B": "pages", "T": "text tokens", "L": "text and visual tokens"}


class TensorRtSegment:
    """One engine.

    All calls are made inside ``with device.current()``. Bindings are not thread-safe. They share ``workspace``, so all work that
    is enqueued at one time must be on one stream.

    Args:
        spec: the manifest's entry, which the engine must fit.
        plan: the engine's bytes. They are code, so the caller must have checked their hash.
        target: the name of the target, for messages.
        workspace: of all engines of the chain, on the device where it runs.
        host_code: whether the plan may bring a runtime of its own, as version-compatible plans do.
        weights: the typed ONNX file with the weights of a stripped plan.

    Raises:
        DeviceError: TensorRT refuses the plan, or the GPU has not enough memory.
        BadPackage: the engine's tensors differ from the manifest.
    """

    def __init__(
        self,
        spec: SegmentSpec,
        plan: bytes,
        target: str,
        workspace: Workspace,
        *,
        host_code: bool = False,
        weights: Path | None = None,
    ) -> None:
        self.exit = spec.exit
        self.inputs: tuple[TensorSpec, ...] = spec.inputs
        self.outputs: tuple[TensorSpec, ...] = spec.outputs
        self._target = target
        # Attributes die in the order of their creation, and the engine must die before its runtime.
        self.engine, self._runtime = _deserialize(plan, spec.file, host_code)
        self.workspace = workspace
        if weights is not None:
            _refit(self.engine, weights)
        self.streams_weights = _stream_weights(self.engine)
        _require_tensors(self.engine, spec)
        workspace.reserve(self.engine.device_memory_size_v2)

    def bind(self, addresses: Mapping[str, int], sizes: Mapping[str, int]) -> BoundEngine:
        """See :meth:`ee_export.runtime.gpu.segment.DeviceSegment.bind`."""
        return BoundEngine(self, addresses, self._profile(sizes), sizes)

    def _profile(self, sizes: Mapping[str, int]) -> int:
        """The profile that holds these sizes and was optimized for the nearest ones."""
        fitting: list[tuple[int, int]] = []
        limits: dict[str, list[tuple[int, int]]] = {}
        for profile in range(self.engine.num_optimization_profiles):
            distance, holds = 0, True
            for tensor in self.inputs:
                least, best, most = map(_sizes, self.engine.get_tensor_profile_shape(tensor.name, profile))
                for index, axis in enumerate(tensor.shape):
                    if isinstance(axis, str):
                        limits.setdefault(axis, []).append((least[index], most[index]))
                        holds &= least[index] <= sizes[axis] <= most[index]
                        distance += abs(best[index] - sizes[axis])
            if holds:
                fitting.append((distance, profile))
        if not fitting:
            raise BadRequest(_beyond(self._target, self.exit, sizes, limits))
        return min(fitting)[1]


class BoundEngine:
    """An engine's execution context with its shapes and addresses. See :class:`~ee_export.runtime.gpu.segment.BoundSegment`."""

    def __init__(
        self, segment: TensorRtSegment, addresses: Mapping[str, int], profile: int, sizes: Mapping[str, int]
    ) -> None:
        # TensorRT refuses to stream weights while a stream is captured.
        self.capturable = not segment.streams_weights
        context = segment.engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise DeviceError(f"{segment.exit}: TensorRT made no execution context: {last_errors()}")
        self._context = context  # set before the segment, so that it dies before the engine
        self._segment = segment
        self._prepare(addresses, profile, sizes)

    def _prepare(self, addresses: Mapping[str, int], profile: int, sizes: Mapping[str, int]) -> None:
        segment, context = self._segment, self._context
        stream = segment.workspace.stream
        self._require(context.set_optimization_profile_async(profile, stream), f"optimization profile {profile}")
        segment.workspace.device.synchronize(stream)  # pages come on other streams, and may not overtake it
        for tensor in segment.inputs:
            shape = shape_of(tensor, sizes)
            self._require(context.set_input_shape(tensor.name, shape), f"{tensor.name} of shape {list(shape)}")
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:  # the binding's error for shapes that do not fit together
            raise DeviceError(f"{segment.exit}: TensorRT infers no shapes ({error}): {last_errors()}") from None
        if missing:
            raise DeviceError(f"{segment.exit}: TensorRT lacks shapes of {', '.join(missing)}")
        for tensor in segment.outputs:
            inferred, expected = _sizes(context.get_tensor_shape(tensor.name)), shape_of(tensor, sizes)
            if inferred != expected:
                raise DeviceError(
                    f"{segment.exit}: {tensor.name} has the inferred shape {list(inferred)}, expected {list(expected)}"
                )
        address, size = segment.workspace.take()
        context.set_device_memory(address, size)
        for tensor in (*segment.inputs, *segment.outputs):
            self._require(context.set_tensor_address(tensor.name, addresses[tensor.name]), f"address of {tensor.name}")

    def enqueue(self, stream: int) -> None:
        """See :meth:`ee_export.runtime.gpu.segment.BoundSegment.enqueue`."""
        # With False nothing is enqueued, and the outputs are those of the last page.
        if not self._context.execute_async_v3(stream):
            raise DeviceError(f"{self._segment.exit}: TensorRT enqueued nothing: {last_errors()}")

    def _require(self, accepted: bool, setting: str) -> None:
        if not accepted:
            raise DeviceError(f"{self._segment.exit}: TensorRT refused {setting}: {last_errors()}")


def _deserialize(plan: bytes, file: str, host_code: bool) -> tuple[trt.ICudaEngine, trt.Runtime]:
    last_errors()  # drops earlier errors
    try:
        runtime = trt.Runtime(LOG)
    except TypeError:  # pybind's error for a null pointer
        raise DeviceError(f"TensorRT {trt.__version__} made no runtime: {last_errors()}") from None
    if host_code:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise DeviceError(f"{file}: TensorRT {trt.__version__} cannot load it ({len(plan)} bytes): {last_errors()}")
    return engine, runtime


def _refit(engine: trt.ICudaEngine, weights: Path) -> None:
    refitter = trt.Refitter(engine, LOG)
    parser = trt.OnnxParserRefitter(refitter, LOG)
    if not parser.refit_from_file(str(weights)) or not refitter.refit_cuda_engine():
        missing = ", ".join(refitter.get_missing_weights()[:3])
        raise DeviceError(f"{weights}: the stripped engine does not take its weights: {missing or last_errors()}")


def _stream_weights(engine: trt.ICudaEngine) -> bool:
    """Set the weight budget of an engine that can stream its weights to TensorRT's choice. True if some weights are streamed."""
    streamable = engine.streamable_weights_size
    if not streamable:
        return False
    engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
    return engine.weight_streaming_budget_v2 < streamable


def _require_tensors(engine: trt.ICudaEngine, spec: SegmentSpec) -> None:
    """Raise BadPackage for the first tensor that differs from the manifest.

    A size that the engine or the manifest leaves open fits any size. The binding checks the numbers.
    """
    expected = {
        tensor.name: (mode, DTYPES[tensor.dtype], tuple(axis if isinstance(axis, int) else -1 for axis in tensor.shape))
        for mode, tensors in ((trt.TensorIOMode.INPUT, spec.inputs), (trt.TensorIOMode.OUTPUT, spec.outputs))
        for tensor in tensors
    }
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    if set(names) != set(expected):
        raise BadPackage(
            f"{spec.file}: has the tensors {', '.join(sorted(names))}, expected {', '.join(sorted(expected))}; compile it again"
        )
    for name in names:
        actual = (engine.get_tensor_mode(name), engine.get_tensor_dtype(name), _sizes(engine.get_tensor_shape(name)))
        if actual[:2] != expected[name][:2] or not _agree(actual[2], expected[name][2]):
            texts = [f"{mode.name} {dtype.name} {list(shape)}" for mode, dtype, shape in (actual, expected[name])]
            raise BadPackage(f"{spec.file}: {name} is {texts[0]}, expected {texts[1]}; compile it again")


def _agree(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return len(shape) == len(other) and all(a == b or -1 in (a, b) for a, b in zip(shape, other, strict=True))


def _sizes(dims: trt.Dims) -> tuple[int, ...]:
    return tuple(int(dims[index]) for index in range(len(dims)))


def _beyond(target: str, exit_name: str, sizes: Mapping[str, int], limits: Mapping[str, list[tuple[int, int]]]) -> str:
    required = " and ".join(f"{sizes[axis]} {_AXES[axis]}" for axis in limits)
    ranges = "; ".join(
        f"{_AXES[axis]}: {', '.join(f'{low} to {high}' for low, high in sorted(set(pairs)))}"
        for axis, pairs in limits.items()
    )
    return (
        f"no profile of {target} holds {required} ({exit_name}): it has {ranges}; "
        "give it smaller batches or shorter pages, or compile it by a recipe with larger profiles"
    )
