"""What a user would run instead: the whole model by other means, from encoded inputs to an answer, on the same weights."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ee_export.bench.nested import nested_if
from ee_export.data.encode import Arrays
from ee_export.errors import BadRequest, require_known
from ee_export.package.manifest import logits_name
from ee_export.package.store import Package, open_package
from ee_export.runtime import ort as backend
from ee_export.runtime.openvino import require_openvino
from ee_export.segments.join import join

Run = Callable[[Arrays], np.ndarray]
"""From encoded inputs of one page to logits, float32 ``[1, C]``."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is compared: a target of a package, the checkpoint it was built from (torch's peers need it), threads, and the whole
    model's graph as another tool exported it from that checkpoint, for the peers that run one."""

    package: str
    target: str
    operating_point: str
    checkpoint: str | None
    threads: int
    graph: str | None = None

    def opened(self) -> Package:
        return open_package(Path(self.package))


def _onnxruntime(subject: Subject) -> tuple[Run, int]:
    """The whole model in onnxruntime, as optimum-onnx exported it, else as `uncut`."""
    graph = _whole(subject)
    return _session(graph, subject.threads), len(graph)


def _uncut(subject: Subject) -> tuple[Run, int]:
    """The chain's own graphs in onnxruntime without their exits, joined to one: nobody has it without this toolkit."""
    graph = _joined(subject)
    return _session(graph, subject.threads), len(graph)


def _nested_if(subject: Subject) -> tuple[Run, int]:
    """Early exits inside one graph, by nested ``If`` nodes with the same thresholds."""
    graph = nested_if(subject.opened(), subject.target, subject.operating_point).SerializeToString()
    return _session(graph, subject.threads), len(graph)


def _openvino(subject: Subject) -> tuple[Run, int]:
    """The same graph in OpenVINO, tuned for latency by its own hint; in bfloat16 where the processor has it."""
    return _by_openvino(subject, {})


def _openvino_f32(subject: Subject) -> tuple[Run, int]:
    """The same in the numbers of the graph, as everybody else computes."""
    return _by_openvino(subject, {"INFERENCE_PRECISION_HINT": "f32"})


def _by_openvino(subject: Subject, more: dict[str, str]) -> tuple[Run, int]:
    require_openvino()
    import openvino

    graph = _whole(subject)
    core = openvino.Core()
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": subject.threads, **more}
    compiled = core.compile_model(core.read_model(graph), "CPU", options)
    names = [port.get_any_name() for port in compiled.inputs]
    output = compiled.output(0)
    return lambda arrays: compiled({name: arrays[name] for name in names})[output], len(graph)


def _transformers(subject: Subject) -> tuple[Run, int]:
    """The stock model of transformers in eager mode."""
    return _torch(subject, compiled=False)


def _torch_compile(subject: Subject) -> tuple[Run, int]:
    """The stock model of transformers by ``torch.compile``, for any text length."""
    return _torch(subject, compiled=True)


PEERS: dict[str, Callable[[Subject], tuple[Run, int]]] = {
    "onnxruntime": _onnxruntime,
    "uncut": _uncut,
    "nested_if": _nested_if,
    "openvino": _openvino,
    "openvino_f32": _openvino_f32,
    "transformers": _transformers,
    "torch_compile": _torch_compile,
}
"""By name: makes the peer ready, and says how many bytes it is on disk."""
CHAIN = "chain"
_EARLY = frozenset({CHAIN, "nested_if"})


class Entry(NamedTuple):
    """What a contender's name says, ``kind[@target][:exit]``.

    ``kind``: the chain or a peer; ``target``: of the package, ``None`` for that of the comparison; ``exit``: where the chain lets
    every page leave, all exits before asked, ``None`` for where its operating point does.
    """

    kind: str
    target: str | None
    exit: str | None

    @property
    def whole(self) -> bool:
        """Whether it is the whole model by means that one has without this toolkit, for every page."""
        return not self.early and self.kind != "uncut"

    @property
    def early(self) -> bool:
        """Whether it leaves early."""
        return self.kind in _EARLY


def entry(name: str) -> Entry:
    """What a contender's name says.

    Raises:
        BadRequest: there is no such kind, or one that cannot be told where to leave is.
    """
    front, _, exit_name = name.partition(":")
    kind, _, target = front.partition("@")
    require_known(kind, (*PEERS, CHAIN), "peer")
    if exit_name and kind != CHAIN:
        raise BadRequest(f"'{name}': only the chain can be told where to leave, as in chain:EXIT")
    return Entry(kind, target or None, exit_name or None)


def _joined(subject: Subject) -> bytes:
    package = subject.opened()
    return join(package, subject.target, [logits_name(package.manifest.exits[-1])]).SerializeToString()


def _whole(subject: Subject) -> bytes:
    if subject.graph is None:
        return _joined(subject)
    try:
        return Path(subject.graph).read_bytes()
    except OSError as error:
        raise BadRequest(f"--graph {subject.graph}: cannot be read ({error.strerror})") from None


def _session(graph: bytes, threads: int) -> Run:
    session = backend.open_session(graph, threads)
    names = [value.name for value in session.get_inputs()]
    return lambda arrays: np.asarray(session.run(None, {name: arrays[name] for name in names})[0])


def _torch(subject: Subject, *, compiled: bool) -> tuple[Run, int]:
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
