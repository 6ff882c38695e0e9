"""What a device believes of what comes on the coordinator's topics: with pinned keys, only what they have signed.

Three statements are worth less than a signature costs, and need none. Chunks of payloads: the digest in a signed task
vouches for them. The clearing of a task: who forges that can only delay, as can whoever drops messages.
"""

import json
import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from shared.codec import decode_coordinator, decode_downlink, decode_task, unsealed
from shared.errors import MalformedMessage, Unsigned
from shared.files import atomic_write
from shared.messages import Chunk, CoordinatorState, Grant, Receipt, Task

if TYPE_CHECKING:
    from shared.seal import Verifier

MARKS = "heard.json"
"""In the device's state folder: the largest number that was believed, by key and topic, so that a reboot does not make
old messages new."""

log = logging.getLogger(__name__)


class Ears:
    """Decodes what is heard. Each method raises MalformedMessage (`unsigned`, `forged`, `replayed` are kinds of it) for
    what is not to be acted on; `refused` counts them by code, and the log tells the first of each.

    A task and a receipt are noted on the disk before they are given out. Grants are not: a repeated one makes the
    device send its coordinator again what that can do without.
    """

    def __init__(self, key_file: Path | None, state_dir: Path) -> None:
        """Without a file of keys everything is believed, signed or not. ConfigError if the keys cannot be read."""
        self.refused: Counter[str] = Counter()
        self._path = state_dir / MARKS
        self._noted = ""
        self._verifier: Verifier | None = None
        if key_file is not None:
            from shared import seal  # cryptography is loaded only where it is needed: devices are small

            self._verifier = seal.Verifier(seal.read_public_keys(key_file), _read(self._path))

    def coordinator(self, topic: str, payload: bytes) -> CoordinatorState:
        return decode_coordinator(self._open(topic, payload))

    def task(self, topic: str, payload: bytes) -> Task:
        task = decode_task(self._open(topic, payload))
        self._note()
        return task

    def downlink(self, topic: str, payload: bytes) -> Grant | Receipt | Chunk:
        try:
            message = decode_downlink(self._open(topic, payload))
        except Unsigned:
            message = decode_downlink(payload)
            if not isinstance(message, Chunk):
                raise
        if isinstance(message, Receipt):
            self._note()
        return message

    def refuse(self, topic: str, error: MalformedMessage) -> None:
        """Count what was not to be acted on."""
        self.refused[error.code] += 1
        level = logging.WARNING if self.refused[error.code] == 1 else logging.DEBUG
        log.log(level, "ignored a message on %s, and every one like it: %s: %s", topic, error.code, error)

    def _open(self, topic: str, payload: bytes) -> bytes:
        return unsealed(payload) if self._verifier is None else self._verifier.open(topic, payload)

    def _note(self) -> None:
        if self._verifier is None or (noted := json.dumps(self._verifier.marks)) == self._noted:
            return
        try:
            atomic_write(self._path, noted.encode())
            self._noted = noted
        except OSError as error:  # a full disk must not make the device deaf
            log.warning("cannot note what was heard, so after a restart it may be repeated once: %s", error)


def _read(path: Path) -> dict[str, dict[str, int]]:
    """The marks of the last run; none, and a warning, where they cannot be read."""
    try:
        marks = json.loads(path.read_bytes())
        return {str(key): {str(topic): int(number) for topic, number in by.items()} for key, by in marks.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError) as error:
        log.warning("%s is damaged: what the coordinator said before may be repeated once (%s)", path, error)
        return {}
