"""Other runtimes of the full model with the same weights, from encoded inputs to logits."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ee_export.bench.messages import CHAIN, Subject
from ee_export.bench.nested import build_nested_if
from ee_export.data.encode import Arrays
from ee_export.errors import BadRequest, require_known
from ee_export.package.manifest import logits_name
from ee_export.runtime import ort as backend
from ee_export.runtime.openvino import require_openvino
from ee_export.segments.join import join

Run = Callable[[Arrays], np.ndarray]
"""Computes logits, float32 ``[1, C]``, from the encoded inputs of one page."""


def _onnxruntime(subject: Subject) -> tuple[Run, int]:
    """The full model in onnxruntime, as optimum-onnx exported it, or else as `uncut`."""
    graph = _read_full_graph(subject)
    return _open_session(graph, subject.threads), len(graph)


def _uncut(subject: Subject) -> tuple[Run, int]:
    """The chain's own graphs in onnxruntime, joined to one graph without exits. Only this toolkit makes it."""
    graph = _join_graphs(subject)
    return _open_session(graph, subject.threads), len(graph)


def _nested_if(subject: Subject) -> tuple[Run, int]:
    """Early exits inside one graph: nested ``If`` nodes with the same thresholds."""
    graph = build_nested_if(subject.open(), subject.target, subject.operating_point).SerializeToString()
    return _open_session(graph, subject.threads), len(graph)


def _openvino(subject: Subject) -> tuple[Run, int]:
    """The same graph in OpenVINO with its latency hint, in bfloat16 if the processor has it."""
    return _open_openvino(subject, {})


def _openvino_f32(subject: Subject) -> tuple[Run, int]:
    """The same in OpenVINO in float32, the precision of the graph and of the other contenders."""
    return _open_openvino(subject, {"INFERENCE_PRECISION_HINT": "f32"})


def _open_openvino(subject: Subject, hints: dict[str, str]) -> tuple[Run, int]:
    require_openvino()
    import openvino

    graph = _read_full_graph(subject)
    core = openvino.Core()
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": subject.threads, **hints}
    compiled = core.compile_model(core.read_model(graph), "CPU", options)
    names = [port.get_any_name() for port in compiled.inputs]
    output = compiled.output(0)
    return lambda arrays: compiled({name: arrays[name] for name in names})[output], len(graph)


def _transformers(subject: Subject) -> tuple[Run, int]:
    """The stock model of transformers in eager mode."""
    return _open_torch(subject, compiled=False)


def _torch_compile(subject: Subject) -> tuple[Run, int]:
    """The stock model of transformers with ``torch.compile``, for any text length."""
    return _open_torch(subject, compiled=True)


PEERS: dict[str, Callable[[Subject], tuple[Run, int]]] = {
    "onnxruntime": _onnxruntime,
    "uncut": _uncut,
    "nested_if": _nested_if,
    "openvino": _openvino,
    "openvino_f32": _openvino_f32,
    "transformers": _transformers,
    "torch_compile": _torch_compile,
}
"""Functions that open a peer, by its name. Each returns the peer and its size on disk in bytes."""
_EARLY = frozenset({CHAIN, "nested_if"})


class Contender(NamedTuple):
    """The parts of a contender's name, ``kind[@target][:exit]``.

    ``kind``: the chain or a peer. ``target``: a target of the package, or ``None`` for that of the comparison.
    ``exit``: the exit at which every page exits after all exits before it are evaluated, or ``None`` if the operating
    point decides.
    """

    kind: str
    target: str | None
    exit: str | None

    @property
    def is_full_model(self) -> bool:
        """True if it runs the full model for every page, without parts of this toolkit."""
        return not self.is_early and self.kind != "uncut"

    @property
    def is_early(self) -> bool:
        """True if it has early exits."""
        return self.kind in _EARLY


def parse_contender(name: str) -> Contender:
    """Parse a contender's name.

    Raises:
        BadRequest: there is no such kind, or the name has an exit and its kind is not the chain.
    """
    front, _, exit_name = name.partition(":")
    kind, _, target = front.partition("@")
    require_known(kind, (*PEERS, CHAIN), "peer")
    if exit_name and kind != CHAIN:
        raise BadRequest(f"'{name}': only the chain takes an exit, as in chain:EXIT")
    return Contender(kind, target or None, exit_name or None)


def _join_graphs(subject: Subject) -> bytes:
    package = subject.open()
    return join(package, subject.target, [logits_name(package.manifest.exits[-1])]).SerializeToString()


def _read_full_graph(subject: Subject) -> bytes:
    if subject.graph is None:
        return _join_graphs(subject)
    try:
        return Path(subject.graph).read_bytes()
    except OSError as error:
        raise BadRequest(f"--graph {subject.graph}: cannot be read ({error.strerror})") from None


def _open_session(graph: bytes, threads: int) -> Run:
    session = backend.open_session(graph, threads)
    names = [value.name for value in session.get_inputs()]
    return lambda arrays: np.asarray(session.run(None, {name: arrays[name] for name in names})[0])


def _open_torch(subject: Subject, *, compiled: bool) -> tuple[Run, int]:
    import torch
    from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification

    from ee_export.model import checkpoint
    from ee_export.model.families import PREFIX

    if subject.checkpoint is None:
        raise BadRequest(
            "the peers of torch run the checkpoint that the package was built from; name it with --checkpoint"
        )
    folder = Path(subject.checkpoint)
    trained, _ = checkpoint.load(folder)
    kind = AutoModelForSequenceClassification if trained.reads("text") else AutoModelForImageClassification
    own = {"exits", "heads", "model_type", "architectures"}
    settings = {name: value for name, value in trained.config.to_dict().items() if name not in own}
    config = AutoConfig.for_model(trained.config.model_type.removeprefix(PREFIX), **settings)
    model = kind.from_config(config)
    stock, weights = model.state_dict().keys(), trained.state_dict()
    if lacking := sorted(stock - weights.keys()):
        raise BadRequest(
            f"{folder}: lacks {lacking[0]} of transformers' {type(model).__name__}; leave the peers of torch out"
        )
    model.load_state_dict({name: weights[name] for name in stock})
    model.eval()
    torch.set_num_threads(subject.threads)
    forward = torch.compile(model, dynamic=True) if compiled else model
    names = list(trained.INPUTS)

    def run(arrays: Arrays) -> np.ndarray:
        with torch.inference_mode():
            logits: np.ndarray = forward(**{name: torch.from_numpy(arrays[name]) for name in names}).logits.numpy()
        return logits

    return run, (folder / "model.safetensors").stat().st_size
