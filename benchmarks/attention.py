"""Time several forms of attention in onnxruntime, and a lookup of the bias, which segments pass on.

python benchmarks/attention.py --record benchmarks/results/attention.json
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from ee_export.bench.machine import environment
from ee_export.bench.statistics import interleave, make_timer, spread
from ee_export.runtime.ort import available_threads, open_session

SHAPES = {"sample": (4, 32, 306), "base, 128 tokens": (12, 64, 325), "base, 512 tokens": (12, 64, 709)}
"""Number of heads, their size, and number of tokens."""
DISTANCES = 2049
_FLOAT = TensorProto.FLOAT


@click.command()
@click.option("--runs", default=40, show_default=True, help="Interleaved rounds.")
@click.option("--record", type=click.Path(path_type=Path), help="Also write the figures to this JSON file.")
def main(runs: int, record: Path | None) -> None:
    """Time one layer at batch size 1. All forms run in one process and one thread pool."""
    result: dict[str, Any] = {**environment(), "runs": runs, "threads": available_threads(), "ms": {}}
    print(f"{result['machine']}; {runs} interleaved rounds; ms, median [p10 – p90]")
    for name, (heads, size, tokens) in SHAPES.items():
        rng = np.random.default_rng(0)
        feeds = {name: rng.standard_normal((1, tokens, heads * size), np.float32) for name in "qkv"}
        feeds["bias"] = rng.standard_normal((1, heads, tokens, tokens), np.float32)
        forms = {form: _session(make(heads, size), feeds) for form, make in FORMS.items()}
        first, *others = (run()[0] for run in forms.values())
        for form, other in zip(list(forms)[1:], others, strict=True):
            assert np.abs(other - first).max() < (0.2 if form == "integers" else 1e-4), form
        places = {"places": rng.integers(0, DISTANCES, (1, tokens, tokens))}
        forms["one of the bias's three tables"] = _session(_lookup(heads), places)
        spreads = {
            form: spread(times)
            for form, times in interleave({form: make_timer(run) for form, run in forms.items()}, runs).items()
        }
        result["ms"][name] = {form: asdict(times) for form, times in spreads.items()}
        print(f"{name}: {heads} heads of {size}, {tokens} tokens")
        for form, times in spreads.items():
            print(f"  {form:32s} {times}")
    if record is not None:
        record.write_text(json.dumps(result, indent=1) + "\n")


def _split(name: str, order: list[int]) -> list[NodeProto]:
    return [
        helper.make_node("Reshape", [name, "split"], [f"{name}.split"]),
        helper.make_node("Transpose", [f"{name}.split"], [f"{name}.heads"], perm=order),
    ]


_MERGE = [
    helper.make_node("Transpose", ["out"], ["out.tokens"], perm=[0, 2, 1, 3]),
    helper.make_node("Reshape", ["out.tokens", "merge"], ["y"]),
]


def _operator(heads: int, size: int) -> ModelProto:
    node = helper.make_node("Attention", [*"qkv", "bias"], ["y"], q_num_heads=heads, kv_num_heads=heads)
    return _model([node], heads, size)


def _operator_on_heads(heads: int, size: int) -> ModelProto:
    split = [node for name in "qkv" for node in _split(name, [0, 2, 1, 3])]
    attend = helper.make_node("Attention", [*(f"{name}.heads" for name in "qkv"), "bias"], ["out"])
    return _model([*split, attend, *_MERGE], heads, size)


def _make_fused(heads: int, size: int) -> ModelProto:
    node = helper.make_node(
        "MultiHeadAttention", [*"qkv", "", "", "bias"], ["y"], domain="com.microsoft", num_heads=heads
    )
    return _model([node], heads, size)


def _plain(heads: int, size: int) -> ModelProto:
    split = [*_split("q", [0, 2, 1, 3]), *_split("k", [0, 2, 3, 1]), *_split("v", [0, 2, 1, 3])]
    return _model(
        [
            *split,
            helper.make_node("Mul", ["q.heads", "scale"], ["q.scaled"]),
            helper.make_node("MatMul", ["q.scaled", "k.heads"], ["scores"]),
            *_weigh("v.heads"),
            *_MERGE,
        ],
        heads,
        size,
    )


def _integers(heads: int, size: int) -> ModelProto:
    split = [*_split("q", [0, 2, 1, 3]), *_split("k", [0, 2, 3, 1]), *_split("v", [0, 2, 1, 3])]
    quantize = [
        helper.make_node("DynamicQuantizeLinear", [f"{name}.heads"], [f"{name}.{part}" for part in ("int", "s", "z")])
        for name in "qkv"
    ]
    return _model(
        [
            *split,
            *quantize,
            helper.make_node("MatMulInteger", ["q.int", "k.int", "q.z", "k.z"], ["scores.int"]),
            helper.make_node("Cast", ["scores.int"], ["scores.float"], to=_FLOAT),
            helper.make_node("Mul", ["q.s", "k.s"], ["qk.s"]),
            helper.make_node("Mul", ["qk.s", "scale"], ["qk.scale"]),
            helper.make_node("Mul", ["scores.float", "qk.scale"], ["scores"]),
            helper.make_node("Add", ["scores", "bias"], ["biased"]),
            helper.make_node("Softmax", ["biased"], ["weights"], axis=-1),
            helper.make_node("QuantizeLinear", ["weights", "p.s", "p.z"], ["weights.int"]),
            helper.make_node("MatMulInteger", ["weights.int", "v.int", "p.z", "v.z"], ["out.int"]),
            helper.make_node("Cast", ["out.int"], ["out.float"], to=_FLOAT),
            helper.make_node("Mul", ["v.s", "p.s"], ["out.s"]),
            helper.make_node("Mul", ["out.float", "out.s"], ["out"]),
            *_MERGE,
        ],
        heads,
        size,
    )


def _weigh(values: str) -> list[NodeProto]:
    return [
        helper.make_node("Add", ["scores", "bias"], ["biased"]),
        helper.make_node("Softmax", ["biased"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", values], ["out"]),
    ]


FORMS: dict[str, Callable[[int, int], ModelProto]] = {
    "Attention, heads split inside": _operator,
    "Attention, heads split outside": _operator_on_heads,
    "MultiHeadAttention (onnxruntime)": _make_fused,
    "plain nodes": _plain,
    "integers": _integers,
}


def _model(nodes: list[NodeProto], heads: int, size: int) -> ModelProto:
    tokens: list[str | int | None] = [1, "L", heads * size]
    graph = helper.make_graph(
        nodes,
        "attention",
        [
            *(helper.make_tensor_value_info(name, _FLOAT, tokens) for name in "qkv"),
            helper.make_tensor_value_info("bias", _FLOAT, [1, heads, "L", "L"]),
        ],
        [helper.make_tensor_value_info("y", _FLOAT, tokens)],
        [
            helper.make_tensor("split", TensorProto.INT64, [4], [0, 0, heads, size]),
            helper.make_tensor("merge", TensorProto.INT64, [3], [0, 0, heads * size]),
            helper.make_tensor("scale", _FLOAT, [], [size**-0.5]),
            helper.make_tensor("p.s", _FLOAT, [], [1 / 255]),
            helper.make_tensor("p.z", TensorProto.UINT8, [], [0]),
        ],
    )
    return _make_model(graph)


def _lookup(heads: int) -> ModelProto:
    """Look up rows of a table of distances, ``[1, L, L, h]``. A bias is the sum of three of these, transposed."""
    table = np.random.default_rng(0).standard_normal((DISTANCES, heads), np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "places"], ["rows"])],
        "lookup",
        [helper.make_tensor_value_info("places", TensorProto.INT64, [1, "L", "L"])],
        [helper.make_tensor_value_info("rows", _FLOAT, [1, "L", "L", heads])],
        [helper.make_tensor("table", _FLOAT, table.shape, table.tobytes(), raw=True)],
    )
    return _make_model(graph)


def _make_model(graph: Any) -> ModelProto:
    imports = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def _session(model: ModelProto, feeds: dict[str, np.ndarray]) -> Callable[[], Any]:
    session = open_session(model.SerializeToString(), available_threads())
    return lambda: session.run(None, feeds)


if __name__ == "__main__":
    main()
