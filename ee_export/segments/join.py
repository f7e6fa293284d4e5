"""Join a target's segments into one uncut graph: what the chain is measured against."""

from collections.abc import Sequence

import onnx
from onnx import compose

from ee_export.errors import BadPackage
from ee_export.manifest import SegmentSpec, logits_name
from ee_export.package import Package


def join(package: Package, target_name: str, outputs: Sequence[str] | None = None) -> onnx.ModelProto:
    """One graph of all the segments' nodes, from the chain's inputs to the tensors named in ``outputs``.

    With every exit's logits (the default) it computes what the chain does. With ``final.logits`` alone nothing is left of
    the earlier exits' heads and of the rows computed for them: it is the whole model, as one would export it without
    this toolkit. Tensors that pass between segments can be asked for too.
    """
    manifest = package.manifest
    joined = onnx.ModelProto()
    inputs: dict[str, onnx.ValueInfoProto] = {}
    for segment in package.target(target_name).segments:
        model = prefixed(package, segment)
        inputs |= {value.name: value for value in model.graph.input if value.name in manifest.inputs}
        joined.ir_version, joined.graph.name = model.ir_version, manifest.name
        if not joined.opset_import:
            joined.opset_import.extend(model.opset_import)
        joined.graph.node.extend(model.graph.node)
        joined.graph.initializer.extend(model.graph.initializer)
        asked = (logits_name(segment.exit),) if outputs is None else outputs
        joined.graph.output.extend(value for value in model.graph.output if value.name in asked)
    used = _remove_unused(joined.graph)
    joined.graph.input.extend(value for name, value in inputs.items() if name in used)
    return joined


def prefixed(package: Package, segment: SegmentSpec) -> onnx.ModelProto:
    """A segment's graph, its weights constants and all inner names begun with its exit's, so that graphs can be joined.

    Raises:
        BadPackage: onnx cannot load it.
    """
    try:
        model = onnx.load(package.path / segment.file)
    except (onnx.checker.ValidationError, OSError) as error:  # among others: it refuses weights with hard links
        raise BadPackage(f"{package.path / segment.file}: onnx cannot load it ({error}); copy the package") from None
    own = {tensor.name for tensor in segment.inputs}
    for value in [value for value in model.graph.input if value.name not in own]:
        model.graph.input.remove(value)  # a weight that another segment holds too: a constant again
    compose.add_prefix(model, f"{segment.exit}/", rename_inputs=False, rename_outputs=False, inplace=True)
    return model


def _remove_unused(graph: onnx.GraphProto) -> set[str]:
    """Drop nodes and weights that no output needs; returns the names of all tensors that are used."""
    used = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if used & set(node.output):
            used |= set(node.input)
            kept.append(node)
    weights = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(weights)
    return used
