"""Keep chains usable in processes that are forked after the load, as by ``gunicorn --preload``.

A fork copies the memory of a process and one of its threads. The new process lacks the threads of an inference session, so
the session's destructor and some of its runs wait for them without end. In the new process, therefore:

- inherited sessions are never destroyed,
- segments with threads of their own are opened again at the first run, from files that are hashed again,
- other segments, such as those on a global thread pool or a GPU, raise ForkedError.
"""

import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from ee_export.errors import ForkedError

if TYPE_CHECKING:
    from ee_export.runtime.segment import Segment

_kept: weakref.WeakSet[object] = weakref.WeakSet()
_loads: "weakref.WeakSet[_Load]" = weakref.WeakSet()
_substitutes: weakref.WeakKeyDictionary[object, tuple[str, Callable[..., Any]]] = weakref.WeakKeyDictionary()
"""For each object, the method to replace in new processes, and its substitute."""


def keep(session: object) -> None:
    """Never destroy an object in processes that are forked later."""
    _kept.add(session)


def reopen(segments: "Sequence[Segment]", open_again: "Callable[[], Sequence[Segment]]") -> None:
    """Open the segments of a load again, all at once, when a process that is forked later runs the first of them.

    Args:
        segments: of one target. Those that an earlier load registered stay with that load.
        open_again: returns new segments in the same order. It may raise an EeError.
    """
    load = _Load(open_again)
    _loads.add(load)
    for position, segment in enumerate(segments):
        _substitutes.setdefault(segment, ("run", partial(load.run, position)))


def refuse(objects: Sequence[object], method: str, remedy: str) -> None:
    """Make a method of some objects raise ForkedError in processes that are forked later."""
    for item in objects:
        _substitutes.setdefault(item, (method, partial(_raise, remedy)))


class _Load:
    """The segments of one load, opened again once in each process."""

    def __init__(self, open_again: "Callable[[], Sequence[Segment]]") -> None:
        self._open_again = open_again
        self.forget()

    def forget(self) -> None:
        """Begin anew, because a thread of the process before may hold the lock, and the segments are that process's."""
        self._lock = threading.Lock()
        self._segments: Sequence[Segment] = ()

    def run(self, position: int, *arguments: Any) -> Any:
        """Run a segment that is opened again. See :meth:`ee_export.runtime.segment.Segment.run`."""
        if not self._segments:
            with self._lock:
                self._segments = self._segments or self._open_again()
        return self._segments[position].run(*arguments)


def _raise(remedy: str, *_: object) -> NoReturn:
    raise ForkedError(
        f"process {os.getpid()}: the chain was loaded before this process was forked, and its threads or its device do "
        f"not exist here; {remedy}"
    )


def _in_new_process() -> None:
    for session in list(_kept):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
    for load in list(_loads):
        load.forget()
    for item, (method, substitute) in list(_substitutes.items()):
        setattr(item, method, substitute)


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_in_new_process)
