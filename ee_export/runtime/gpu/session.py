"""Sessions on a GPU: see :mod:`ee_export.runtime.session`."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ee_export.errors import BadRequest
from ee_export.package.store import Package
from ee_export.runtime import forked
from ee_export.runtime.backend import Backend
from ee_export.runtime.gpu.executors.choose import open_device_chain
from ee_export.runtime.gpu.executors.device_chain import DeviceChain, ExitPolicy
from ee_export.runtime.gpu.open import open_package_segments
from ee_export.runtime.gpu_targets import destroy_stream, open_gpu, sizes_of_target
from ee_export.runtime.plan import Plan, make_plan
from ee_export.runtime.plan import operating_point as find_point
from ee_export.runtime.session import SessionAnswer, SessionResults, answer_of, count_tokens


class DeviceSession:
    """See :class:`ee_export.runtime.session.Session`."""

    def __init__(self, package: Package, target: str, plan: Plan, chain: DeviceChain) -> None:
        self.exits, self.labels = plan.exits, plan.labels
        self.batches, self.lengths = chain.buffers.sizes.batches, chain.buffers.sizes.lengths
        self._package = package
        self._target = target
        self._plan = plan
        self._chain = chain
        self._rows = 0

    def run(self, inputs: Mapping[str, object], tokens: np.ndarray | None = None) -> SessionResults:
        buffers = self._chain.buffers
        read = {name: inputs[name] for name in buffers.inputs if name in inputs}
        if not read:
            raise BadRequest(f"no inputs; this session takes {', '.join(buffers.inputs)}")
        rows = buffers.count_rows(read)
        if self._plan.counts_tokens and tokens is None:
            tokens = count_tokens(inputs, self._plan.rules, rows)
        self._chain.start(rows)
        self._chain.enqueue(read, tokens)
        self._rows = rows
        results = self._chain.results_on_device()
        return SessionResults(results["exits"], results["scores"], results["answers"])

    def answers(self) -> list[SessionAnswer]:
        if not self._rows:
            raise BadRequest("no answers: nothing was run")
        self._chain.wait()
        answers = []
        for result in self._chain.results():
            exit = -1 if result.exit is None else result.exit
            answers.append(answer_of(self._plan, exit, float(result.scores[-1]), result.logits[-1]))
        return answers

    def retune(self, operating_point: str) -> None:
        target = self._package.target(self._target)
        plan = make_plan(self._package.manifest, target, find_point(target, operating_point))
        self._chain.retune(ExitPolicy.of(plan.point, plan.rules, plan.exits))
        self._plan = plan


@contextlib.contextmanager
def open_on_stream(
    backend: Backend,
    package: Package,
    target: str,
    plan: Plan,
    device: int,
    stream: int | None,
    executor: str,
    batches: Sequence[int],
    lengths: Sequence[int],
) -> Iterator[DeviceSession]:
    """Open a session on a GPU. See :func:`ee_export.runtime.open_session.open_session`."""
    assert backend.open_on_device is not None
    gpu = open_gpu(device)
    sizes = sizes_of_target(package, target)
    sizes = replace(
        sizes,
        batches=tuple(batches) or sizes.batches,
        lengths=(tuple(lengths) or sizes.lengths) if sizes.lengths else (),
    )
    with contextlib.ExitStack() as closing:
        with gpu.current():
            if stream is None:
                stream = gpu.create_stream()
                closing.callback(destroy_stream, gpu, stream)
            segments = open_package_segments(package, target, backend.open_on_device, gpu, stream)
        policy = ExitPolicy.of(plan.point, plan.rules, plan.exits)
        chain = closing.enter_context(open_device_chain(gpu, segments, policy, sizes, kind=executor, stream=stream))
        session = DeviceSession(package, target, plan, chain)
        forked.refuse([session], "run", "open the session in this process")
        yield session
