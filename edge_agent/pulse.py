"""Whether the agent of a state folder is alive, asked of itself: a socket in the folder, answered by its main loop.

A loop that hangs does not answer, and nothing is written to flash for it. `talaria-agent status` asks; so do health
checks of containers, and an upgrade that wants to know whether the new version works.
"""

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from shared.errors import StateError
from shared.supervisor import keep_posted

SOCKET = "agent.sock"
ANSWER_BYTES = 65_536


@contextlib.asynccontextmanager
async def supervised(directory: Path, facts: Callable[[], dict[str, Any]]) -> AsyncIterator[None]:
    """Answer everybody who asks, and keep systemd posted, as long as the block lasts."""

    def words() -> str:
        known = facts()
        return f"{known['phase']}, {'connected' if known['connected'] else 'without its broker'}"

    async with answering(directory, facts):
        posting = asyncio.create_task(keep_posted(words))
        try:
            yield
        finally:
            posting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await posting


@contextlib.asynccontextmanager
async def answering(directory: Path, facts: Callable[[], dict[str, Any]]) -> AsyncIterator[None]:
    """Answer everybody who asks with the facts of the moment, one JSON object. The caller holds the folder's lock."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(json.dumps(facts()).encode())
            await writer.drain()
        writer.close()

    with _address(directory) as address:
        server = await asyncio.start_unix_server(answer, address)
        try:
            yield
        finally:
            server.close()
            with contextlib.suppress(FileNotFoundError):
                (directory / SOCKET).unlink()


def ask(directory: Path, timeout_s: float) -> dict[str, Any]:
    """The facts of the agent that has this state folder open; StateError where none answers in time."""
    try:
        with _address(directory) as address, socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(timeout_s)
            sock.connect(address)
            answer = b""
            while chunk := sock.recv(ANSWER_BYTES):
                answer += chunk
        facts = json.loads(answer)
    except TimeoutError:
        raise StateError(f"the agent of {directory} hangs: it did not answer within {timeout_s:g} s") from None
    except (OSError, ValueError) as error:
        raise StateError(f"no agent answers in {directory}: is it running, with this state_dir?") from error
    assert isinstance(facts, dict)
    return facts


@contextlib.contextmanager
def _address(directory: Path) -> Iterator[str]:
    """Name of the socket. A socket's name is at most 107 bytes long; Linux lets the folder be named by its number."""
    if sys.platform != "linux":
        yield str(directory / SOCKET)
        return
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{SOCKET}"
    finally:
        os.close(folder)
