"""The history of a run: one JSON line per closed round, and one for the personalization. Append-only, never twice.

{"event": "round", "round", "attempts", "cohort": [device], "accepted": [{"device", "start", "staleness", "examples",
 "weight", "bytes", "encoding", "kept", "norm", "metrics"}], "evaluation", "rejected": [{"device", "code", "reason"}],
 "failed": [...], "wall_s", "bytes_down", "bytes_up", "payload_bytes", "digest"}
{"event": "personalized", "round", "devices": [{"device", "examples", "metrics"}], "absent": [device], "evaluation",
 "rejected": [...], "failed": [...], "wall_s", "digest"}

start          the round from whose tensors the update started; staleness: how many closed since, until it was accepted
               (0 unless rounds are buffered, where one device can have two updates in a round)
kept           share of the channels that the update held, 1 for a dense one
norm           L2 norm of what the update changed, over all floats that it holds (coordinator.admission.distance)
evaluation     {"accuracy": spread, "accuracy_global": spread} over the devices of `accepted`, or `devices`, that tell
               these metrics and their test examples; a spread is a shared.evaluation.Spread
absent         devices that could train at some time of the run, and neither reported nor failed in the end
encoding       of the update (shared.encoding.Encoding); bytes: its size
bytes_up       of the packets in which chunks of updates came; bytes_down: of those in which every device that was given
               a download of the round gets it, and of what was sent again (shared.link.packet_size)
payload_bytes  size of the largest download that a device of the round was given
digest         SHA-256 of the global payload that the round ended with
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from shared.errors import StateError
from shared.files import sync_directory

Line: TypeAlias = dict[str, Any]


def read_journal(path: Path) -> Iterator[Line]:
    """The lines of a journal, oldest first; none where there is no file. StateError names the line that is no JSON.

    A last line without an end was being written when the power went: it is not part of the journal.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.endswith(b"\n"):
                return
            try:
                yield json.loads(raw)
            except ValueError as error:
                raise StateError(f"{path}, line {number}: not JSON ({error}); remove the line to go on") from error


class Journal:
    """Writes the journal. A line is known by its event and round: appending it again changes nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = {self._key(line) for line in read_journal(path)}
        if path.exists():
            self._cut_torn_tail()

    def append(self, line: Line) -> None:
        """Return when the line is on the disk. Where the disk refuses: OSError, and the journal is as before."""
        if self._key(line) in self._known:
            return
        with self._path.open("ab") as file:
            end = file.tell()
            try:
                file.write(json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(self._path, end)
                raise
        if not self._known:
            sync_directory(self._path.parent)
        self._known.add(self._key(line))

    def _cut_torn_tail(self) -> None:
        content = self._path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self._path, whole)

    @staticmethod
    def _key(line: Line) -> tuple[str, int]:
        return line["event"], line["round"]
