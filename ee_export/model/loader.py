"""Read and encode pages in worker processes beside the one that trains."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ee_export.errors import EeError, shorten

_MOST_WORKERS = 8
_ENOUGH_PAGES = 1000
"""Smallest number of pages for which processes that encode pay."""


def workers_to_encode(workers: int | None, pages: int) -> int:
    """Number of processes that encode pages: ``workers``, or by default one per processor if there are many pages."""
    if workers is not None:
        return workers
    return min(_MOST_WORKERS, count_processors()) if pages >= _ENOUGH_PAGES and count_processors() > 1 else 0


def workers_to_train(workers: int | None, device: torch.device) -> int:
    """Number of processes that make batches: ``workers``, or by default that of the processors idle beside a GPU."""
    if workers is not None:
        return workers
    return 0 if device.type == "cpu" else min(_MOST_WORKERS, count_processors() - 1)


def count_processors() -> int:
    """Count the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_items(dataset: Dataset[Any], order: Sequence[int], workers: int, *, pin: bool = False) -> Iterator[Any]:
    """Load the items of a data set in a given order, by worker processes, or by this process if there are none.

    Args:
        dataset: ``__getitem__`` makes an item.
        order: the items' indices.
        workers: number of processes, each of which prefetches two items.
        pin: true to put tensors into page-locked memory, from which a GPU copies faster.

    Raises:
        EeError: a worker process ended.
    """
    can_fork = "fork" in multiprocessing.get_all_start_methods()
    count = workers if can_fork else 0  # other start methods would copy the whole data set to a process
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=order,
        num_workers=count,
        collate_fn=_identity,
        pin_memory=pin,
        multiprocessing_context="fork" if count else None,
        generator=torch.Generator(),  # its own generator, because the caller owns the sequence of the global one
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise EeError(
            f"a process that loads pages ended ({shorten(error)}); free some memory, give /dev/shm more room, or pass --workers 0"
        ) from None


def _identity(item: Any) -> Any:
    return item
