"""Early exits inside one ONNX graph: the segments of a chain in nested ``If`` nodes, as a build without a runtime."""

from collections.abc import Sequence

import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper

from ee_export.errors import BadRequest
from ee_export.package.manifest import OperatingPoint, logits_name
from ee_export.package.store import Package
from ee_export.runtime.plan import operating_point
from ee_export.segments.join import gather_segments

_ANSWER = "answer"


def build_nested_if(package: Package, target_name: str, point_name: str) -> onnx.ModelProto:
    """Build one graph from the inputs of one page, with its text, to the logits ``[1, C]`` of its exit.

    Raises:
        BadRequest: the operating point's criterion is not ``max_probability`` or ``margin``, which a few nodes compute,
            or it has thresholds per class.
    """
    target = package.target(target_name)
    point = operating_point(target, point_name)
    if point.criterion not in _SCORES or any(isinstance(threshold, tuple) for threshold in point.thresholds.values()):
        raise BadRequest(
            f"operating point '{point_name}' decides by '{point.criterion}': nested Ifs are built for {' and '.join(_SCORES)} "
            "with one threshold an exit"
        )
    segments = [
        segment
        for segment in target.segments
        if point.thresholds.get(segment.exit, 0.0) is not None
        or len(segment.outputs) > 1  # otherwise no node depends on it
    ]
    joined, graphs = gather_segments(package, segments)
    bodies = [(segment.exit, list(graph.node)) for segment, graph in zip(segments, graphs, strict=True)]
    classes = len(package.manifest.labels)
    for exit_name, _ in bodies[:-1]:
        calibration = target.calibration_of(exit_name, classes)
        for field, values in (("scale", calibration.scale), ("bias", calibration.bias)):
            joined.graph.initializer.append(
                helper.make_tensor(f"{exit_name}/{field}", TensorProto.FLOAT, [classes], values)
            )
    joined.graph.initializer.append(helper.make_tensor("two", TensorProto.INT64, [1], [2]))
    joined.graph.node.extend(_nest(bodies, point, classes))
    joined.graph.output.append(
        helper.make_tensor_value_info(f"{bodies[0][0]}/{_ANSWER}", TensorProto.FLOAT, [1, classes])
    )
    return joined


def _nest(bodies: Sequence[tuple[str, list[NodeProto]]], point: OperatingPoint, classes: int) -> list[NodeProto]:
    """Return the nodes of the first body, and an ``If`` around those of all others."""
    (name, nodes), *rest = bodies
    answer = f"{name}/{_ANSWER}"
    if not rest:
        return [*nodes, helper.make_node("Identity", [logits_name(name)], [answer])]
    threshold = point.thresholds[name]
    assert not isinstance(threshold, tuple)  # build_nested_if has rejected it
    if threshold is None:
        inner = _nest(rest, point, classes)
        return [*nodes, *inner, helper.make_node("Identity", [f"{rest[0][0]}/{_ANSWER}"], [answer])]
    stay = _make_branch(f"{name}/stay", _nest(rest, point, classes), f"{rest[0][0]}/{_ANSWER}", classes)
    kept = f"{name}/kept"
    leave = _make_branch(f"{name}/leave", [helper.make_node("Identity", [logits_name(name)], [kept])], kept, classes)
    value = helper.make_tensor("value", TensorProto.FLOAT, [], [threshold])
    return [
        *nodes,
        helper.make_node("Mul", [logits_name(name), f"{name}/scale"], [f"{name}/scaled"]),
        helper.make_node("Add", [f"{name}/scaled", f"{name}/bias"], [f"{name}/calibrated"]),
        helper.make_node("Softmax", [f"{name}/calibrated"], [f"{name}/probabilities"], axis=1),
        helper.make_node("TopK", [f"{name}/probabilities", "two"], [f"{name}/best", f"{name}/classes"], axis=1),
        helper.make_node("Split", [f"{name}/best"], [f"{name}/first", f"{name}/second"], axis=1, num_outputs=2),
        *_SCORES[point.criterion](name),
        helper.make_node("Squeeze", [f"{name}/score"], [f"{name}/confidence"]),
        helper.make_node("Constant", [], [f"{name}/threshold"], value=value),
        helper.make_node("GreaterOrEqual", [f"{name}/confidence", f"{name}/threshold"], [f"{name}/leaves"]),
        helper.make_node("If", [f"{name}/leaves"], [answer], then_branch=leave, else_branch=stay),
    ]


_SCORES = {
    "max_probability": lambda name: [helper.make_node("Identity", [f"{name}/first"], [f"{name}/score"])],
    "margin": lambda name: [helper.make_node("Sub", [f"{name}/first", f"{name}/second"], [f"{name}/score"])],
}


def _make_branch(name: str, nodes: Sequence[NodeProto], output: str, classes: int) -> GraphProto:
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, classes])])
