"""Placement of a chain's tensors. Tensors share memory only if they are never needed at the same time."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ee_export.errors import BadRequest
from ee_export.package.manifest import TensorSpec
from ee_export.runtime.gpu.buffers import _places
from ee_export.runtime.gpu.sizes import Sizes


def random_chain(seed: int) -> tuple[list[Any], list[str], dict[str, TensorSpec]]:
    random = np.random.default_rng(seed)
    inputs = [TensorSpec(f"in.{index}", str(random.choice(["float32", "int64"])), ("B", 4)) for index in range(2)]
    there, segments = list(inputs), []
    for step in range(8):
        read = [spec for spec in there if random.random() < 0.4]
        made = [
            TensorSpec(f"{step}.{index}", str(random.choice(["float32", "float16", "int64"])), ("B", 4))
            for index in range(int(random.integers(1, 4)))
        ]
        segments.append(SimpleNamespace(inputs=tuple(read), outputs=tuple(made)))
        there += made
    return segments, [spec.name for spec in inputs], {spec.name: spec for spec in there}


def lives(segments: list[Any], inputs: list[str]) -> dict[str, tuple[int, int]]:
    """The segments that make and last read each tensor. Inputs keep their memory, and unread outputs stay for the
    host."""
    spans = {name: (-1, len(segments)) for name in inputs}
    for position, segment in enumerate(segments):
        for spec in segment.outputs:
            readers = [later for later, other in enumerate(segments) if spec in other.inputs]
            spans[spec.name] = (position, max(readers, default=len(segments)))
    return spans


@pytest.mark.parametrize("seed", range(40))
def test_tensors_that_are_needed_at_once_never_share_memory_and_integers_never_do(seed: int) -> None:
    segments, inputs, specs = random_chain(seed)
    size = {name: int(np.random.default_rng(len(name)).integers(1, 100)) for name in specs}
    place_of, places = _places(segments, inputs, size)
    living = lives(segments, inputs)
    for one in place_of:
        assert places[place_of[one]] >= size[one]
        for other in place_of:
            if one < other and place_of[one] == place_of[other]:
                assert specs[one].dtype != "int64" and specs[other].dtype != "int64"
                (first, last), (begin, end) = living[one], living[other]
                assert last < begin or end < first  # a segment never writes to the memory that it reads


def test_a_row_of_hidden_states_alternates_between_two_places() -> None:
    hidden = [TensorSpec(f"hidden.{index}", "float32", ("B", 4)) for index in range(12)]
    segments: list[Any] = [SimpleNamespace(inputs=(a,), outputs=(b,)) for a, b in pairwise(hidden)]
    segments.append(SimpleNamespace(inputs=(hidden[-1],), outputs=(TensorSpec("final.logits", "float32", ("B", 4)),)))
    _, places = _places(segments, ["hidden.0"], {spec.name: 16 for spec in (*hidden, *segments[-1].outputs)})
    assert len(places) == 1 + 2 + 1


def test_sizes_that_make_no_sense_are_refused() -> None:
    for batches in ((), (4, 2), (0, 1), (1, 1)):
        with pytest.raises(BadRequest):
            Sizes(batches)
    with pytest.raises(BadRequest, match="600 text tokens: this chain was opened for 512 at most"):
        Sizes((1,), (128, 512)).length(600)
    assert (Sizes((1, 4)).batch(3), Sizes((1,), (128, 512)).length(128)) == (4, 128)
