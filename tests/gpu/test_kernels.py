"""The device's kernels on the host, by a C++ compiler: decisions, packing, and rows that move."""

import ctypes
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ee_export.errors import BadLogits
from ee_export.policy.criteria import CRITERIA, ExitHistory
from ee_export.policy.decide import NEVER, ExitRule, Threshold, calibrate_logits, gate_probability, limits
from ee_export.runtime.gpu.kernels import FIRST, ROW, STABLE, Gather, policy_block
from tests.gpu.host_kernels import ORDERS, Batch, host_library, play

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "policy.json").read_text())["cases"]
SEED = 20250


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return host_library(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(params=ORDERS, ids=["one thread", "seven threads", "threads backwards"])
def threads(request: pytest.FixtureRequest, library: ctypes.CDLL) -> tuple[int, int]:
    play(library, *request.param)
    return request.param


def plain_policy(thresholds: Sequence[Threshold], classes: int = 2) -> np.ndarray:
    rules = [ExitRule((1.0,) * classes, (0.0,) * classes)] * (len(thresholds) + 1)
    return policy_block(rules, "max_probability", thresholds, classes)


LEAVES, STAYS = [0.0, 4.0], [4.0, 0.0]
"""Logits, with :data:`SECOND_LEAVES`."""
SECOND_LEAVES: list[Threshold] = [(None, 0.5)]


# ---- the policy -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: case["name"])
def test_the_vectors_that_every_implementation_of_the_policy_passes(library: ctypes.CDLL, case: dict) -> None:
    steps = case["exits"]
    classes = len(steps[0]["logits"])
    rules = [ExitRule(step["scale"], step["bias"], step["weights"]) for step in steps]
    thresholds = [tuple(t) if isinstance(t := step["threshold"], list) else t for step in steps[:-1]]

    def run(bars: Sequence[Threshold]) -> Batch:
        batch = Batch.of(1, classes)
        policy = policy_block(rules, case["criterion"], bars, classes)
        for index, step in enumerate(steps):
            if index and not batch.rows[0]:
                break
            tokens = np.array([case["tokens"]]) if step["after_text"] else None
            logits = np.array([step["logits"]])
            batch.decide(library, policy, index, logits, tokens=tokens, flags=0 if index else FIRST)
            assert batch.scratch[0, :classes] == pytest.approx(step["probabilities"], abs=1e-9)
            assert batch.scores[0] == pytest.approx(step["score"], abs=1e-9)
        return batch

    assert run([None] * (len(steps) - 1)).exits[0] == len(steps) - 1  # every exit is seen
    left = run(thresholds)
    assert left.exits[0] == case["leaves_at"]
    assert left.answers[0].tolist() == np.float32(steps[case["leaves_at"]]["logits"]).tolist()


def in_python(
    logits: np.ndarray,
    rules: Sequence[ExitRule],
    criterion: str,
    thresholds: Sequence[Threshold],
    tokens: np.ndarray,
    gates: Sequence[np.ndarray | None],
    evaluated: Sequence[int],
) -> tuple[list[int], list[float]]:
    """Exits and scores of every page, one at a time, by the policy's own functions."""
    exits, scores = [], []
    for page in range(logits.shape[1]):
        known = ExitHistory()
        for index in evaluated:
            rule, bars = rules[index], limits((*thresholds, -NEVER)[index], logits.shape[2])
            try:
                known.probabilities.append(calibrate_logits(logits[index, page].tolist(), rule.scale, rule.bias))
                gate = gates[index]
                known.gate = None if gate is None else gate_probability(float(gate[page, 0]), rule.gate)
            except BadLogits:
                exits.append(-1 - index)
                scores.append(np.nan)
                break
            known.tokens = int(tokens[index, page])
            score = CRITERIA[criterion].score(known, rule.weights)
            if score >= bars[int(np.argmax(known.probabilities[-1]))]:
                exits.append(index)
                scores.append(score)
                break
    return exits, scores


def some_thresholds(rng: np.random.Generator, exits: int, classes: int) -> list[Threshold]:
    def one() -> float | None:
        return None if rng.random() < 0.2 else float(rng.uniform(0.2, 1.0))

    return [one() if rng.random() < 0.5 else tuple(one() for _ in range(classes)) for _ in range(exits - 1)]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("block", range(3))
def test_random_batches_exit_as_in_python(library: ctypes.CDLL, criterion: str, block: int) -> None:
    rng = np.random.default_rng([SEED, block, list(CRITERIA).index(criterion)])
    reached: set[int] = set()
    for turn in range(40):
        play(library, *ORDERS[turn % 3])
        classes, exits, pages = (int(rng.integers(*span)) for span in ((2, 65), (1, 13), (1, 65)))
        logits = (rng.normal(size=(exits, pages, classes)) * rng.choice([1, 4, 20])).astype(np.float32)
        logits[rng.random(logits.shape) < 0.02 / classes] = rng.choice([np.nan, np.inf, -np.inf])
        logits[:, :, 0] += np.float32(4.0) * (rng.random(pages) < 0.5)  # or neighbours would hardly ever agree
        gates = [
            (rng.normal(size=(pages, 1)) * 2).astype(np.float32) if criterion == "gate" and index < exits - 1 else None
            for index in range(exits)
        ]
        for gate in gates:
            if gate is not None and rng.random() < 0.3:
                gate[rng.integers(pages)] = np.nan
        tokens = rng.integers(0, 700, (exits, pages)) * (np.arange(exits) > exits // 3)[:, None]
        rules = [
            ExitRule(
                rng.uniform(0.3, 2, classes).tolist(),
                rng.normal(size=classes).tolist() if rng.random() < 0.5 else [0.0] * classes,
                rng.normal(size=classes + 7).tolist() if criterion == "failure_prediction" else (),
                gate=(float(rng.uniform(0.3, 2)), float(rng.normal())),
            )
            for _ in range(exits)
        ]
        thresholds = some_thresholds(rng, exits, classes)
        evaluated = [index for index in range(exits) if index == exits - 1 or rng.random() < 0.9]
        wanted_exits, wanted_scores = in_python(logits, rules, criterion, thresholds, tokens, gates, evaluated)

        batch = Batch.of(pages, classes)
        policy = policy_block(rules, criterion, thresholds, classes)
        for index in evaluated:
            known = tokens[index] if tokens[index].any() else None
            order = int(rng.choice([0, STABLE])) | (FIRST if index == evaluated[0] else 0)
            scratch = bool(rng.random() < 0.5)
            batch.decide(
                library, policy, index, logits[index], gates=gates[index], tokens=known, flags=order, scratch=scratch
            )
        assert batch.rows[0] == 0
        assert batch.exits.tolist() == wanted_exits
        assert np.allclose(batch.scores, wanted_scores, rtol=0, atol=1e-12, equal_nan=True)
        answered = [index if index >= 0 else -1 - index for index in wanted_exits]
        assert np.array_equal(batch.answers, logits[answered, range(pages)], equal_nan=True)
        reached |= set(wanted_exits)
    assert {0, 1, -1} <= reached  # else the thresholds above would test nothing


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["logits", "gate"])
def test_a_page_of_bad_logits_stops_at_once_and_records_its_exit(library: ctypes.CDLL, bad: float, place: str) -> None:
    batch = Batch.of(3, 2)
    policy = plain_policy([None, None])
    logits, gates = np.zeros((3, 2), np.float32), np.zeros((3, 1), np.float32)
    batch.decide(library, policy, 0, logits, gates=gates, flags=FIRST)
    (logits if place == "logits" else gates)[1, 0] = bad
    batch.decide(library, policy, 1, logits, gates=gates)
    assert batch.exits.tolist() == [-999, -2, -999]
    assert np.isnan(batch.scores[1]) and batch.alive == [0, 2]
    assert np.array_equal(batch.answers[1], logits[1], equal_nan=True)


def test_a_page_exits_if_its_score_equals_the_threshold(library: ctypes.CDLL) -> None:
    logits = np.random.default_rng(SEED).normal(size=(64, 5))
    batch = Batch.of(64, 5)
    batch.decide(library, plain_policy([None], 5), 0, logits, flags=FIRST)
    bar = float(np.sort(batch.scores)[32])
    again = Batch.of(64, 5)
    again.decide(library, plain_policy([bar], 5), 0, logits, flags=FIRST)
    assert sorted(np.flatnonzero(again.exits == 0)) == sorted(np.argsort(batch.scores)[32:])


def test_of_equal_classes_the_first_is_answered(library: ctypes.CDLL) -> None:
    batch = Batch.of(2, 2)
    batch.decide(library, plain_policy([(0.5, None)]), 0, np.zeros((2, 2)), flags=FIRST)
    assert batch.exits.tolist() == [0, 0]


def test_the_last_exit_answers_even_without_a_score(library: ctypes.CDLL) -> None:
    rules = [ExitRule((1.0, 1.0), (0.0, 0.0), (float("nan"),) * 9)]
    batch = Batch.of(1, 2)
    batch.decide(library, policy_block(rules, "failure_prediction", [], 2), 0, np.zeros((1, 2)), flags=FIRST)
    assert batch.exits[0] == 0 and batch.rows[0] == 0


def test_a_policy_is_retuned_by_writing_its_buffer(library: ctypes.CDLL) -> None:
    policy = plain_policy([None])
    batch = Batch.of(2, 2)
    batch.decide(library, policy, 0, np.array([LEAVES, STAYS]), flags=FIRST)
    assert batch.alive == [0, 1]
    rules = [ExitRule((1.0, 1.0), (0.0, 0.0), (0.0,) * 9)] * 2
    retuned = policy_block(rules, "failure_prediction", SECOND_LEAVES, 2)
    assert retuned.shape == policy.shape
    policy[:] = retuned
    batch.decide(library, policy, 0, np.array([LEAVES, STAYS]), flags=FIRST)
    assert batch.alive == [1] and batch.scores[0] == 0.5


def test_scores_and_logits_of_remaining_pages_are_kept_for_a_trace(library: ctypes.CDLL) -> None:
    batch = Batch.of(2, 2)
    batch.decide(library, plain_policy(SECOND_LEAVES), 0, np.array([LEAVES, STAYS]), flags=FIRST)
    assert batch.scores.tolist() == [1 / (1 + np.exp(-4))] * 2
    assert batch.answers.tolist() == [LEAVES, STAYS]


# ---- packing --------------------------------------------------------------------------------------------------------------


def packed(library: ctypes.CDLL, stays: Sequence[bool], flags: int) -> Batch:
    """A second decision by hand, after one at which no page exited but the order changed."""
    batch = Batch.of(len(stays), 2)
    batch.ids[:] = np.arange(len(stays))[::-1]
    logits = np.empty((len(stays), 2))
    logits[batch.ids] = np.where(np.array(stays)[:, None], STAYS, LEAVES)  # by row
    batch.trail[:] = 0
    batch.decide(library, plain_policy(SECOND_LEAVES), 0, logits, flags=flags)
    return batch


def check_packing(library: ctypes.CDLL, stays: Sequence[bool]) -> None:
    survivors = np.flatnonzero(stays)
    pages = np.arange(len(stays))[::-1]
    kept = packed(library, stays, STABLE)
    assert kept.rows[0] == len(survivors)
    assert kept.alive == pages[survivors].tolist()
    assert kept.source[: len(survivors)].tolist() == survivors.tolist()
    filled = packed(library, stays, 0)
    source = filled.source[: len(survivors)]
    assert sorted(source) == survivors.tolist()
    assert filled.alive == pages[source].tolist()
    moved = np.flatnonzero(source != np.arange(len(source)))
    assert len(moved) <= min(len(survivors), len(stays) - len(survivors))
    assert not set(moved) & set(source[moved])
    assert not any(stays[int(index)] for index in moved)


@pytest.mark.parametrize("pages", range(1, 9))
def test_every_subset_of_a_small_batch_is_packed(library: ctypes.CDLL, threads: tuple[int, int], pages: int) -> None:
    for stays in itertools.product([False, True], repeat=pages):
        check_packing(library, stays)


def test_large_batches_are_packed(library: ctypes.CDLL, threads: tuple[int, int]) -> None:
    rng = np.random.default_rng(SEED)
    for pages in [31, 32, 33, 63, 64, 65, *rng.integers(9, 64, 100).tolist(), 1023, 1024]:
        check_packing(library, (rng.random(pages) < rng.random()).tolist())


def value_of(library: ctypes.CDLL, alive: int, buckets: Sequence[int] | None) -> int:
    batch = Batch.of(64, 2)
    logits = np.array([STAYS] * alive + [LEAVES] * (64 - alive))
    bucket_sizes = None if buckets is None else np.array(buckets, np.int32)
    batch.decide(library, plain_policy(SECOND_LEAVES), 0, logits, flags=FIRST, buckets=bucket_sizes)
    assert batch.rows[0] == alive
    return int(batch.value[0])


def test_a_switch_gets_the_first_bucket_that_holds_the_rows(library: ctypes.CDLL) -> None:
    buckets = [1, 2, 4, 8, 16, 32, 64]
    expected = {0: 7, 1: 0, 2: 1, 3: 2, 4: 2, 5: 3, 8: 3, 9: 4, 16: 4, 17: 5, 32: 5, 33: 6, 63: 6, 64: 6}
    assert {alive: value_of(library, alive, buckets) for alive in expected} == expected
    assert value_of(library, 0, [64]) == 1 and value_of(library, 64, [64]) == 0


def test_an_if_node_gets_1_if_a_row_remains(library: ctypes.CDLL) -> None:
    assert [value_of(library, alive, None) for alive in (0, 1, 64)] == [0, 1, 1]


def test_no_rows_decide_nothing(library: ctypes.CDLL, threads: tuple[int, int]) -> None:
    batch = Batch.of(4, 2)
    batch.rows[0] = 0
    batch.decide(library, plain_policy([0.0]), 0, np.zeros((4, 2)), flags=FIRST, buckets=np.array([4], np.int32))
    assert batch.value[0] == 1 and batch.rows[0] == 0
    assert (batch.exits == -999).all() and (batch.ids == -999).all() and (batch.answers == -999).all()


# ---- moving rows ----------------------------------------------------------------------------------------------------------


def gather(
    library: ctypes.CDLL, moves: Sequence[tuple[np.ndarray, np.ndarray]], source: np.ndarray, alive: int
) -> None:
    """Rows of byte arrays ``[rows, bytes]`` from the first of each pair to the second."""
    table = np.array([(src.ctypes.data, dst.ctypes.data, src.shape[1]) for src, dst in moves], ROW)
    count, rows = np.array([alive], np.int32), source.astype(np.int32)
    library.ee_gather_rows(
        Gather(tensors=table.ctypes.data, source=rows.ctypes.data, alive=count.ctypes.data, tensor_count=len(moves))
    )


def bytes_at(offset: int, rows: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """Random bytes ``[rows, length]`` that begin at an address of ``offset`` modulo 16."""
    held = rng.integers(0, 256, rows * length + 32).astype(np.uint8)
    begin = (offset - held.ctypes.data) % 16
    return held[begin : begin + rows * length].reshape(rows, length)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 8, 12, 15, 16, 17, 24, 709, 1418, 4096, 4100])
@pytest.mark.parametrize("offset", [0, 1, 2, 4, 8])
def test_rows_of_any_length_move(library: ctypes.CDLL, threads: tuple[int, int], length: int, offset: int) -> None:
    rng = np.random.default_rng(SEED + length)
    for alive in (0, 1, 5, 8):
        src, dst = bytes_at(offset, 8, length, rng), bytes_at(0, 8, length, rng)
        before, source = dst.copy(), np.sort(rng.permutation(8)[:alive])
        gather(library, [(src, dst)], source, alive)
        assert np.array_equal(dst[:alive], src[source])
        assert np.array_equal(dst[alive:], before[alive:])


def test_tensors_move_together_and_holes_are_filled_in_place(library: ctypes.CDLL, threads: tuple[int, int]) -> None:
    rng = np.random.default_rng(SEED)
    for _ in range(50):
        stays = rng.random(32) < rng.random()
        batch = packed(library, stays.tolist(), 0)
        alive = int(batch.rows[0])
        tensors = [bytes_at(0, 32, length, rng) for length in (64, 709, 1536)]
        expected = [tensor[batch.source[:alive]] for tensor in tensors]
        gather(library, [(tensor, tensor) for tensor in tensors], batch.source, alive)
        for tensor, rows in zip(tensors, expected, strict=True):
            assert np.array_equal(tensor[:alive], rows)
