"""Cut a torch model at its exits and write ONNX segments."""

from collections.abc import Callable
from pathlib import Path

from ee_export.model.parts import PartedModel
from ee_export.package.manifest import SegmentSpec
from ee_export.segments import weights
from ee_export.segments.cut import cut_parts
from ee_export.segments.export import export_segment
from ee_export.segments.trace import Tensors


def export_segments(
    model: PartedModel, tensors: Tensors, folder: Path, target: str, progress: Callable[[str], None]
) -> tuple[SegmentSpec, ...]:
    """Write every segment to ``folder/target/<exit>.onnx`` and their weights beside them, and return their manifest entries."""
    segments = cut_parts(model.parts, model.exits)
    graphs = []
    for segment in segments:
        progress(segment.exit)
        graphs.append(export_segment(segment, model.module, tensors))
    (folder / target).mkdir(parents=True, exist_ok=True)
    weights.externalize_weights(graphs, folder / target)

    specs = []
    for segment, graph in zip(segments, graphs, strict=True):
        file = f"{target}/{segment.exit}.onnx"
        (folder / file).write_bytes(graph.SerializeToString(deterministic=True))
        inputs, outputs = (tuple(tensors.specs[name] for name in names) for names in (segment.inputs, segment.outputs))
        specs.append(SegmentSpec(segment.exit, file, inputs, outputs))
    return tuple(specs)
