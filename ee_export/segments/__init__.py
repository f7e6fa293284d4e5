"""Cut a model at its exits and write ONNX segments; torch in, files out."""

from collections.abc import Callable
from pathlib import Path

from ee_export.manifest import SegmentSpec, TensorSpec
from ee_export.model.early_exit import EarlyExitModel
from ee_export.segments import weights
from ee_export.segments.cut import cut
from ee_export.segments.export import dtype_name, export_segment


def export_segments(
    model: EarlyExitModel, folder: Path, target: str, progress: Callable[[str], None]
) -> tuple[SegmentSpec, ...]:
    """Write every segment to ``folder/target/<exit>.onnx`` and their weights beside them; returns their manifest entries."""
    shapes = model.shapes()
    segments = cut(model.parts(answer_first=True), model.config.exit_names())
    graphs = []
    for segment in segments:
        progress(segment.exit)
        graphs.append(export_segment(segment, model, shapes))
    (folder / target).mkdir(parents=True, exist_ok=True)
    weights.share(graphs, folder / target)

    def tensors(names: tuple[str, ...]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name, dtype_name(name), shapes[name]) for name in names)

    specs = []
    for segment, graph in zip(segments, graphs, strict=True):
        file = f"{target}/{segment.exit}.onnx"
        (folder / file).write_bytes(graph.SerializeToString(deterministic=True))
        specs.append(SegmentSpec(segment.exit, file, tensors(segment.inputs), tensors(segment.outputs)))
    return tuple(specs)
