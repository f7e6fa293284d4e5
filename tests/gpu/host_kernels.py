"""The device's kernels as functions on host memory, by a C++ compiler: same source, same arguments."""

import ctypes
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ee_export.runtime.gpu.kernels import FIRST, STABLE, Decide, Gather, source, trail_shape

ORDERS = [(1, 0), (7, 0), (32, 1)]
"""Number of simulated threads, and whether the last one begins."""


def host_library(folder: Path) -> ctypes.CDLL:
    """A library with ``ee_decide`` and ``ee_gather_rows``, each called with its structure. Skips if there is no C++
    compiler.

    ``CONDITIONAL`` has no effect in it, so tests read ``value``. ``ctypes.c_int.in_dll(library, "ee_threads").value``
    is the number of simulated threads, and "ee_backwards" states if the last of them runs first. Every result must be
    the same.
    """
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler to build the device's kernels for the host")
    text, built = folder / "kernels.cpp", folder / "kernels.so"
    text.write_text(source())
    options = ["-O2", "-std=c++17", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *options, "-shared", "-fPIC", str(text), "-o", str(built)], check=True)
    library = ctypes.CDLL(str(built))
    for name, argument in (("ee_decide", Decide), ("ee_gather_rows", Gather)):
        function = getattr(library, name)
        function.argtypes, function.restype = [argument], None
    return library


def play(library: ctypes.CDLL, threads: int, backwards: int) -> None:
    ctypes.c_int.in_dll(library, "ee_threads").value = threads
    ctypes.c_int.in_dll(library, "ee_backwards").value = backwards


@dataclass(slots=True)
class Batch:
    """The buffers of a batch, and the memory that a decision reads and writes."""

    pages: int
    classes: int
    exits: np.ndarray
    scores: np.ndarray
    answers: np.ndarray
    ids: np.ndarray
    source: np.ndarray
    rows: np.ndarray
    value: np.ndarray
    trail: np.ndarray
    scratch: np.ndarray

    @staticmethod
    def of(pages: int, classes: int) -> "Batch":
        unset = np.full(pages, -999, np.int32)
        return Batch(
            pages,
            classes,
            exits=unset.copy(),
            scores=np.full(pages, -999.0),
            answers=np.full((pages, classes), -999, np.float32),
            ids=unset.copy(),
            source=unset.copy(),
            rows=np.array([pages], np.int32),
            value=unset[:1].copy(),
            trail=np.full(trail_shape(pages, classes), np.nan),
            scratch=np.full((pages, 2 * classes + 2), np.nan),
        )

    @property
    def alive(self) -> list[int]:
        """The pages that stay, row by row."""
        return self.ids[: self.rows[0]].tolist()

    def decide(
        self,
        library: ctypes.CDLL,
        policy: np.ndarray,
        index: int,
        logits: np.ndarray,
        *,
        gates: np.ndarray | None = None,
        tokens: np.ndarray | None = None,
        buckets: np.ndarray | None = None,
        flags: int = STABLE,
        scratch: bool = True,
    ) -> None:
        """One decision. ``logits [pages, C]``, ``gates [pages, 1]`` and ``tokens [pages]`` are per page. They are
        packed here as rows are."""
        rows = np.arange(self.pages) if flags & FIRST else self.ids[: self.rows[0]]
        packed = np.ascontiguousarray(logits[rows[: self.rows[0]]], np.float32)
        packed_gates = None if gates is None else np.ascontiguousarray(gates[rows[: self.rows[0]]], np.float32)
        held = None if tokens is None else np.ascontiguousarray(tokens, np.int32)

        def address(array: np.ndarray | None) -> int:
            return 0 if array is None else array.ctypes.data

        library.ee_decide(
            Decide(
                logits=address(packed),
                gates=address(packed_gates),
                policy=address(policy),
                tokens=address(held),
                trail=address(self.trail),
                scratch=address(self.scratch) if scratch else 0,
                rows=address(self.rows),
                alive=address(self.rows),
                ids=address(self.ids),
                source=address(self.source),
                exits=address(self.exits),
                scores=address(self.scores),
                answers=address(self.answers),
                value=address(self.value),
                buckets=address(buckets),
                exit=index,
                exit_count=int(policy[4:8].view(np.int32)[0]),
                classes=self.classes,
                bucket_count=0 if buckets is None else len(buckets),
                flags=flags,
            )
        )
