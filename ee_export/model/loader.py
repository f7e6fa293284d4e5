"""Worker processes that read and encode pages beside the one that trains."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ee_export.errors import EeError, shorten

_MOST_WORKERS = 8
_ENOUGH_PAGES = 1000
"""Pages from which on it pays to start processes that encode."""


def workers_to_encode(workers: int | None, pages: int) -> int:
    """Processes that encode this many pages: ``workers``, or by default one a processor if there are many pages."""
    if workers is not None:
        return workers
    return min(_MOST_WORKERS, count_processors()) if pages >= _ENOUGH_PAGES and count_processors() > 1 else 0


def workers_to_train(workers: int | None, device: torch.device) -> int:
    """Processes that make batches: ``workers``, or by default as many as there are processors that a GPU leaves idle."""
    if workers is not None:
        return workers
    return 0 if device.type == "cpu" else min(_MOST_WORKERS, count_processors() - 1)


def count_processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_items(dataset: Dataset[Any], order: Sequence[int], workers: int, *, pin: bool = False) -> Iterator[Any]:
    """The items of a data set in a given order, made by some worker processes, or by this one if there are none.

    Args:
        dataset: ``__getitem__`` makes an item.
        order: the items' indices.
        workers: processes; each keeps two items ready.
        pin: whether tensors are put into page-locked memory, from which a GPU copies faster.

    Raises:
        EeError: a worker process ended.
    """
    can_fork = "fork" in multiprocessing.get_all_start_methods()
    count = workers if can_fork else 0  # other ways to start a process would copy the whole data set to it
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=order,
        num_workers=count,
        collate_fn=_identity,
        pin_memory=pin,
        multiprocessing_context="fork" if count else None,
        generator=torch.Generator(),  # its own: the order of the global one's numbers belongs to the caller
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
