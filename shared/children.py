"""Child processes that must not outlive us."""

import ctypes
import functools
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Called in a child of the process `parent`: be sent that signal when it dies, even by SIGKILL. Linux only."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it was quicker
            os._exit(1)


def dying_with_us(number: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    """The same as `preexec_fn` of a child that is about to be started.

    The kernel means the thread that starts it: one that lives as long as the process, such as the main thread or an
    executor's.
    """
    return functools.partial(die_with, os.getpid(), number)
