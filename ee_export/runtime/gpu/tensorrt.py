"""Segments as TensorRT engines, of TensorRT 10 and 11; imported only where a target needs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import tensorrt as trt

from ee_export.errors import BadPackage, BadRequest, DeviceError
from ee_export.package.manifest import SegmentSpec, TensorSpec
from ee_export.runtime.gpu.buffers import shape_of
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
    """One engine. All calls are made inside ``with device.current()``. Bindings are not thread-safe and share ``scratch``: what is enqueued at one time is on one stream.

    Args:
        spec: the manifest's entry, which the engine must agree with.
        plan: the engine's bytes, which the caller found to have the manifest's hash: they are code.
        target: the name of the target, for messages.
        scratch: that of all engines of the chain, on the device where it runs.
        host_code: whether the plan may bring a runtime of its own, as version-compatible ones do.
        weights: the typed ONNX file that a stripped plan takes its weights from.

    Raises:
        DeviceError: TensorRT refuses the plan, with its words; or the GPU has not enough memory.
        BadPackage: the engine's tensors are not those of the manifest.
    """

    def __init__(
        self,
        spec: SegmentSpec,
        plan: bytes,
        target: str,
        scratch: Workspace,
        *,
        host_code: bool = False,
        weights: Path | None = None,
    ) -> None:
        self.exit = spec.exit
        self.inputs: tuple[TensorSpec, ...] = spec.inputs
        self.outputs: tuple[TensorSpec, ...] = spec.outputs
        self._target = target
        # Attributes die in the order they were made in: an engine before its runtime.
        self._engine, self._runtime = _deserialized(plan, spec.file, host_code)
        self._scratch = scratch
        if weights is not None:
            _refit(self._engine, weights)
        self._streams = _stream_weights(self._engine)
        _require_tensors(self._engine, spec)
        scratch.reserve(self._engine.device_memory_size_v2)

    def bind(self, addresses: Mapping[str, int], sizes: Mapping[str, int]) -> BoundEngine:
        """See :meth:`ee_export.runtime.gpu.segment.DeviceSegment.bind`."""
        return BoundEngine(self, addresses, self._profile(sizes), sizes)

    def _profile(self, sizes: Mapping[str, int]) -> int:
        """The profile that holds these sizes and was optimized for the nearest ones."""
        found: list[tuple[int, int]] = []
        limits: dict[str, list[tuple[int, int]]] = {}
        for profile in range(self._engine.num_optimization_profiles):
            distance, holds = 0, True
            for tensor in self.inputs:
                least, best, most = map(_sizes, self._engine.get_tensor_profile_shape(tensor.name, profile))
                for at, axis in enumerate(tensor.shape):
                    if isinstance(axis, str):
                        limits.setdefault(axis, []).append((least[at], most[at]))
                        holds &= least[at] <= sizes[axis] <= most[at]
                        distance += abs(best[at] - sizes[axis])
            if holds:
                found.append((distance, profile))
        if not found:
            raise BadRequest(_beyond(self._target, self.exit, sizes, limits))
        return min(found)[1]


class BoundEngine:
    """An engine's execution context with its shapes and addresses; see :class:`~ee_export.runtime.gpu.segment.BoundSegment`."""

    def __init__(
        self, segment: TensorRtSegment, addresses: Mapping[str, int], profile: int, sizes: Mapping[str, int]
    ) -> None:
        # TensorRT refuses to stream weights while a stream is captured.
        self.capturable = not segment._streams
        context = segment._engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise DeviceError(f"{segment.exit}: TensorRT made no execution context: {last_errors()}")
        self._context = context  # made before, so that it dies before, the engine
        self._segment = segment
        self._prepare(addresses, profile, sizes)

    def _prepare(self, addresses: Mapping[str, int], profile: int, sizes: Mapping[str, int]) -> None:
        segment, context = self._segment, self._context
        stream = segment._scratch.stream
        self._require(context.set_optimization_profile_async(profile, stream), f"optimization profile {profile}")
        segment._scratch.device.synchronize(stream)  # pages come on other streams, and may not overtake it
        for tensor in segment.inputs:
            shape = shape_of(tensor, sizes)
            self._require(context.set_input_shape(tensor.name, shape), f"{tensor.name} of shape {list(shape)}")
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:  # so its binding says that the shapes do not go together
            raise DeviceError(f"{segment.exit}: TensorRT infers no shapes ({error}): {last_errors()}") from None
        if missing:
            raise DeviceError(f"{segment.exit}: TensorRT lacks shapes of {', '.join(missing)}")
        for tensor in segment.outputs:
            found, expected = _sizes(context.get_tensor_shape(tensor.name)), shape_of(tensor, sizes)
            if found != expected:
                raise DeviceError(f"{segment.exit}: {tensor.name} would be {list(found)}, expected {list(expected)}")
        address, size = segment._scratch.take()
        context.set_device_memory(address, size)
        for tensor in (*segment.inputs, *segment.outputs):
            self._require(context.set_tensor_address(tensor.name, addresses[tensor.name]), f"address of {tensor.name}")

    def enqueue(self, stream: int) -> None:
        """See :meth:`ee_export.runtime.gpu.segment.BoundSegment.enqueue`."""
        # False leaves nothing enqueued, and the outputs as the last page left them.
        if not self._context.execute_async_v3(stream):
            raise DeviceError(f"{self._segment.exit}: TensorRT enqueued nothing: {last_errors()}")

    def _require(self, done: bool, what: str) -> None:
        if not done:
            raise DeviceError(f"{self._segment.exit}: TensorRT refused {what}: {last_errors()}")


def _deserialized(plan: bytes, file: str, host_code: bool) -> tuple[trt.ICudaEngine, trt.Runtime]:
    last_errors()  # of what came before
    try:
        runtime = trt.Runtime(LOG)
    except TypeError:  # what pybind makes of a null pointer
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
    """Let an engine that can stream its weights hold as many as TensorRT finds room for; True where some are streamed."""
    streamable = engine.streamable_weights_size
    if not streamable:
        return False
    engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
    return engine.weight_streaming_budget_v2 < streamable


def _require_tensors(engine: trt.ICudaEngine, spec: SegmentSpec) -> None:
    """Raise BadPackage for the first tensor that is not as the manifest says.

    Where either leaves a size open the other may know it: a bound engine's are checked when they are numbers.
    """
    expected = {
        tensor.name: (mode, DTYPES[tensor.dtype], tuple(axis if isinstance(axis, int) else -1 for axis in tensor.shape))
        for mode, tensors in ((trt.TensorIOMode.INPUT, spec.inputs), (trt.TensorIOMode.OUTPUT, spec.outputs))
        for tensor in tensors
    }
    names = [engine.get_tensor_name(at) for at in range(engine.num_io_tensors)]
    if set(names) != set(expected):
        raise BadPackage(
            f"{spec.file}: has the tensors {', '.join(sorted(names))}, expected {', '.join(sorted(expected))}; compile it again"
        )
    for name in names:
        found = (engine.get_tensor_mode(name), engine.get_tensor_dtype(name), _sizes(engine.get_tensor_shape(name)))
        if found[:2] != expected[name][:2] or not _agree(found[2], expected[name][2]):
            was, wanted = (f"{mode.name} {dtype.name} {list(shape)}" for mode, dtype, shape in (found, expected[name]))
            raise BadPackage(f"{spec.file}: {name} is {was}, expected {wanted}; compile it again")


def _agree(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return len(shape) == len(other) and all(a == b or -1 in (a, b) for a, b in zip(shape, other, strict=True))


def _sizes(dims: trt.Dims) -> tuple[int, ...]:
    return tuple(int(dims[at]) for at in range(len(dims)))


def _beyond(target: str, exit_name: str, sizes: Mapping[str, int], limits: Mapping[str, list[tuple[int, int]]]) -> str:
    wanted = " and ".join(f"{sizes[axis]} {_AXES[axis]}" for axis in limits)
    ranges = "; ".join(
        f"{_AXES[axis]}: {', '.join(f'{low} to {high}' for low, high in sorted(set(found)))}"
        for axis, found in limits.items()
    )
    return (
        f"no profile of {target} holds {wanted} ({exit_name}): it has {ranges}; "
        "give it smaller batches or shorter pages, or compile it by a recipe with larger profiles"
    )
