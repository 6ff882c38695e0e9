"""Everything that devices may fetch now, as blobs: each device's download, the initial model, the template.

Files are made in threads, when the first device needs them. What was made for a round stays until it closes, or as
long as somebody is at work on it, also through a restart: somebody may be fetching it.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.checkpoints import RunDirectory
from shared.chunks import describe
from shared.messages import Blob

if TYPE_CHECKING:
    from coordinator.ledger import Ledger


class Payloads:
    """One call at a time.

    chunk      bytes of a chunk that link and devices take now
    published  blobs that may be with the broker: who is known there is described as it was published
    """

    def __init__(
        self,
        directory: RunDirectory,
        ledger: "Ledger",
        *,
        chunk: Callable[[], int],
        published: Callable[[], Collection[Blob]],
    ) -> None:
        self.initial: Blob | None = None
        """The complete initial model, where the run has one of its own."""
        self.template: Blob | None = None
        """Once `open_template` has found it."""
        self.digest = ""
        """SHA-256 of the global payload that the round starts from."""
        self._directory = directory
        self._ledger = ledger
        self._chunk = chunk
        self._published = published
        self._described: dict[Path, Blob] = {}
        self._round: dict[Path, Blob] = {}
        self._given: dict[str, tuple[int, Path]] = {}

    async def turn(self, number: int, starts: Collection[int] = ()) -> None:
        """Round `number` is open or comes next, and somebody is at work on what these rounds started from. What was
        published for any of them, also by an earlier start, stays published."""
        self._given = {device: given for device, given in self._given.items() if given[0] in starts}
        files = [path for start in sorted({number, *starts}) for path in self._files(start)]
        self._described = {path: self._described.get(path) or await self._describe(path) for path in files}
        self.digest = self._described[self._directory.global_payload(number)].digest
        published, known = self._published(), {**self._described, **self._round}
        self._round = {path: known[path] for path in files if path in self._round or known[path] in published}
        if self.initial is None and self._directory.initial.exists():
            self.initial = await self._describe(self._directory.initial)

    def recut(self) -> None:
        """Have everything in chunks that everybody takes now."""
        self._round = {path: self._cut(blob) for path, blob in self._round.items()}
        self.initial = self.initial and self._cut(self.initial)
        self.template = self.template and self._cut(self.template)

    async def give(self, number: int, devices: Mapping[str, Sequence[str]]) -> dict[str, Blob]:
        """Let every device have its download of what round `number` starts from; those that had none before, with what
        they are given.

        devices  name -> the encodings that it reads, what it likes best first
        """
        new = {device: wanted for device, wanted in devices.items() if self.of(device, number) is None}
        if not new:
            return {}
        made = await asyncio.to_thread(self._ledger.downloads.make, number, new)
        for path in dict.fromkeys(made.values()):
            if path not in self._round:
                self._round[path] = self._cut(self._described.get(path) or await self._describe(path))
        self._given |= {device: (number, path) for device, path in made.items()}
        return {device: self._round[path] for device, path in made.items()}

    def of(self, device: str, number: int) -> Blob | None:
        """What this device was given of what round `number` starts from."""
        start, path = self._given.get(device, (None, None))
        return self._round[path] if path is not None and start == number else None

    @property
    def largest(self) -> int:
        """Bytes of the largest download of the round so far."""
        return max((blob.size for blob in self._round.values()), default=0)

    @property
    def total(self) -> int:
        """Bytes of all that the broker should keep."""
        return sum(blob.size for blob in self.wanted())

    async def open_template(self) -> bool:
        """Let devices have the template of the run, if it is made; whether that is news."""
        if self.template is not None or not self._directory.template.exists():
            return False
        self.template = self._cut(await self._describe(self._directory.template))
        return True

    def wanted(self) -> dict[Blob, Path]:
        """What the broker should keep, and the files."""
        wanted = {blob: path for path, blob in self._round.items()}
        if self.initial is not None:
            wanted[self.initial] = self._directory.initial
        if self.template is not None:
            wanted[self.template] = self._directory.template
        return wanted

    def _files(self, number: int) -> list[Path]:
        """What is there of what round `number` starts from: the global payload first."""
        return [self._directory.global_payload(number), *sorted(self._directory.downloads(number).glob("*.payload"))]

    async def _describe(self, path: Path) -> Blob:
        """In chunks of the size that it was published with, if it was."""
        blob = await asyncio.to_thread(describe, path, self._chunk())
        return next((known for known in self._published() if known.digest == blob.digest), blob)

    def _cut(self, blob: Blob) -> Blob:
        """In chunks that everybody takes; never in larger ones than before, for those that it is with the broker in
        are no hindrance."""
        return blob.model_copy(update={"chunk": min(self._chunk(), blob.chunk)})
