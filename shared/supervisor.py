"""Telling systemd how we are: the protocol of sd_notify(3), a datagram. Where nobody asked, nothing is sent."""

import asyncio
import os
import socket
from collections.abc import Callable

STATUS_S = 10.0
"""Seconds from one look at the status to the next, where no watchdog wants them sooner."""


def notify(**facts: str) -> None:
    """Send facts (READY, STATUS, WATCHDOG, STOPPING, ...) to the supervisor that NOTIFY_SOCKET names, if there is one.

    Nothing is raised: a supervisor that does not listen is no reason to stop working.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    text = "\n".join(f"{name}={value}" for name, value in facts.items())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto(text.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
    except OSError:
        pass


async def keep_posted(status: Callable[[], str]) -> None:
    """Say READY, then the status whenever it is another one, and WATCHDOG twice as often as the watchdog asks for.

    Runs until it is cancelled. It belongs into the loop that does the work: a loop that stands
    still is then a program that hangs, and systemd starts it anew.
    """
    watchdog_s = _watchdog_s()
    said = status()
    notify(READY="1", STATUS=said)
    while True:
        await asyncio.sleep(STATUS_S if watchdog_s is None else min(STATUS_S, watchdog_s / 2))
        if watchdog_s is not None:
            notify(WATCHDOG="1")
        if (now := status()) != said:
            notify(STATUS=now)
            said = now


def _watchdog_s() -> float | None:
    """Seconds without a sign after which we would be killed; None where no watchdog is meant for this process."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        return int(os.environ["WATCHDOG_USEC"]) / 1e6
    except (KeyError, ValueError):
        return None
