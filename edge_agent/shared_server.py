"""One fork server for many agents on one machine: the training library is loaded, and kept in memory, once for all.

For emulated fleets; a device has its own (edge_agent.fork_server). Whoever wants to share calls `lend` in a process of
its own, with a Unix socket. An agent whose LENDER names that socket runs `python -m edge_agent.shared_server SOCKET` in
place of its fork server: a fork of the lender then does exactly what a fork server does, at the other end of this
process's stdin and stdout. What kills one agent's trainer is still no harm to another's.
"""

import os
import select
import signal
import socket
import sys
from pathlib import Path

from edge_agent.fork_server import serve
from shared.children import die_with
from shared.plugins import load_object

LENDER = "TALARIA_TRAINERS"
"""Environment variable of an agent: path of the lender's socket."""


def lend(entry: str, listener: socket.socket) -> None:
    """Serve every agent that connects to the listening socket, for ever, with jobs that call `entry`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the agents, who still need us to end
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a fork ended
    load_object(entry)
    lender = os.getpid()
    while True:
        line, _ = listener.accept()
        with line:
            _, descriptors, _, _ = socket.recv_fds(line, 1, 1)
            if descriptors and os.fork() == 0:
                try:
                    die_with(lender)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for number, descriptor in enumerate((line.fileno(), line.fileno(), descriptors[0])):
                        os.dup2(descriptor, number)
                    for held in (listener, line):
                        held.close()
                    serve(entry)
                finally:
                    os._exit(0)
            for descriptor in descriptors:
                os.close(descriptor)


def borrow(path: Path) -> None:
    """Be the fork server that the lender has for us, until the end of stdin. If it is killed, so are we."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # as a fork server does
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(path))
        socket.send_fds(line, [b"\0"], [2])  # what jobs print goes where it would have gone
        while True:
            ready, _, _ = select.select([0, line.fileno()], [], [])
            if line.fileno() in ready:
                reply = line.recv(4096)
                if not reply:
                    os.kill(os.getpid(), signal.SIGKILL)
                os.write(1, reply)
            elif command := os.read(0, 4096):
                line.sendall(command)
            else:
                line.shutdown(socket.SHUT_WR)
                while line.recv(4096):
                    pass
                return


if __name__ == "__main__":
    borrow(Path(sys.argv[1]))
