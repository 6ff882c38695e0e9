"""The process that trainers are forked from: `python -m edge_agent.fork_server package.module:function`.

Importing torch takes seconds and 200 MB. This process does it once; every job is a fork of it, which takes
milliseconds, gives all its memory back by exiting, and may die of anything without harm to the agent.

stdin   one line per job: a path, which the function is called with. Any line while a job runs kills it.
        At the end of stdin, which is also what the death of the agent looks like, nothing is left running.
stdout  `ready`, then one line per job: its exit status, negative for the signal that ended it.
"""

import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from shared.children import die_with
from shared.plugins import load_object

NICENESS = 10
"""Training gives way to everything else on the device."""


def serve(entry: str) -> None:
    """Load the function that `entry` names, and fork jobs that call it, until the end of stdin."""
    commands, replies = os.dup(0), os.dup(1)
    os.dup2(2, 1)  # what a job prints is no reply
    with open(os.devnull) as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)  # and a job reads no commands
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # these are for the agent; we end when it does
    work = load_object(entry)
    assert callable(work)
    _reply(replies, "ready")
    while line := _line(commands):
        if path := line.strip():
            _reply(replies, str(_run(work, path, commands, replies)))


def _run(work: Callable[[Path], object], path: str, commands: int, replies: int) -> int:
    """The exit status of one forked job."""
    alive, held_by_job = os.pipe()
    server = os.getpid()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            for descriptor in (alive, commands, replies):
                os.close(descriptor)
            die_with(server)
            os.nice(NICENESS)
            limit_memory(json.loads(Path(path).read_text())["profile"]["training"]["memory_mib"])
            work(Path(path))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(held_by_job)
    ready, _, _ = select.select([commands, alive], [], [])
    if alive not in ready:
        os.kill(pid, signal.SIGKILL)
        _line(commands)
    os.close(alive)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def limit_memory(budget_mib: int) -> None:
    """Let this process allocate a profile's budget beyond what it has now; more is a MemoryError.

    RLIMIT_DATA counts private writable memory, also what is only reserved; that of the loaded libraries is inherited
    from the fork server (about 230 MB with torch), so the budget starts there.
    """
    if sys.platform != "linux":
        return
    import resource

    status = Path("/proc/self/status").read_text()
    used = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData:"))
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used + budget_mib * 2**20, most))


def _line(descriptor: int) -> str:
    """The next line with its newline; empty at the end. Unbuffered, so that select sees every waiting line."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(descriptor, 1)
        if not byte:
            return ""
        line += byte
    return line.decode()


def _reply(descriptor: int, text: str) -> None:
    os.write(descriptor, f"{text}\n".encode())


if __name__ == "__main__":
    serve(sys.argv[1])
