"""With how much of a network a device starts, where its memory does not suffice to train all of it.

Nothing is estimated: what the job is about to do is rehearsed in a fork of its process, with a few examples and under
the same limit, so that running out of memory is an answer and not the end of the job.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable

from shared.children import die_with
from shared.errors import OutOfMemory, TalariaError

WIDTHS = (1.0, 0.75, 0.5, 0.375, 0.25, 0.125)
"""Shares of each layer's channels that are tried, the largest first."""
RESERVE = 0.1
"""Share of the budget that a rehearsal leaves: its few steps are not all that the job will allocate."""
_NO_MEMORY = ("can't allocate memory", "could not create a primitive", "bad_alloc")
"""How torch's allocator says that an allocation failed, how oneDNN does, and how C++ does."""
_TOO_LARGE = 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed."""
    known = isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)
    return known or isinstance(error, MemoryError | OutOfMemory)


def starting_width(rehearse: Callable[[float], object], most: float, budget_mib: int) -> float:
    """The largest of WIDTHS, at most `most`, with which this process stays within its memory limit.

    rehearse    does what the job will do at a width, with as many threads. It runs in forks of this process: whatever
                it changes is lost, and threads that computed here before are not there, which OpenMP would wait for
    budget_mib  what the limit allows the job
    Without a limit nothing is rehearsed. OutOfMemory if no width fits.
    """
    widths = [width for width in WIDTHS if width <= most] or [most]
    if not _limited():
        return widths[0]
    for width in widths:
        if _fits(rehearse, width, int(RESERVE * budget_mib * 2**20)):
            return width
    raise OutOfMemory(
        f"training does not fit into {budget_mib} MiB even with {widths[-1]:g} of each layer's channels: raise "
        "training.memory_mib, lower training.batch_size, or run a smaller model"
    )


def _fits(rehearse: Callable[[float], object], width: float, reserve: int) -> bool:
    """Whether a rehearsal in a fork has the memory that it needs. Any other error is left to the job itself to tell."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        status = 0
        try:
            die_with(parent)
            _lower_limit(reserve)
            rehearse(width)
        except BaseException as error:
            if is_out_of_memory(error):
                status = _TOO_LARGE
            elif not isinstance(error, TalariaError):  # which the job itself will tell, in a line
                traceback.print_exc()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status == 0 or status == -signal.SIGILL  # which has nothing to do with memory


def _limited() -> bool:
    if sys.platform != "linux":
        return False
    import resource

    return resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY


def _lower_limit(by: int) -> None:
    import resource

    limit, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit - by, most))
