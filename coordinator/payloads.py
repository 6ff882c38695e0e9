"""Everything that devices may fetch now, as blobs: each device's download, the initial model, the template.

Files are made in threads, when the first device needs them. What was made for a round stays until it closes, also
through a restart: somebody may be fetching it.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.checkpoints import RunDirectory
from coordinator.preparation import Preparation
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
        preparation: Preparation,
        *,
        chunk: Callable[[], int],
        published: Callable[[], Collection[Blob]],
    ) -> None:
        self.initial: Blob | None = None
        """The complete initial model, where the run has one of its own."""
        self.template: Blob | None = None
        """Once `open_template` has found one."""
        self.digest = ""
        """SHA-256 of the global payload that the round starts from."""
        self._directory = directory
        self._ledger = ledger
        self._preparation = preparation
        self._chunk = chunk
        self._published = published
        self._number = 0
        self._described: dict[Path, Blob] = {}
        self._round: dict[Path, Blob] = {}
        self._given: dict[str, Path] = {}
        self._asked = False

    async def turn(self, number: int) -> None:
        """Round `number` is open or comes next. What was published for it, by an earlier start, stays published."""
        self._number, self._given = number, {}
        whole = self._directory.global_payload(number)
        files = [whole, *sorted(self._directory.downloads(number).glob("*.payload"))]
        self._described = {path: await self._describe(path) for path in files}
        self.digest = self._described[whole].digest
        published = self._published()
        self._round = {path: blob for path, blob in self._described.items() if blob in published}
        if self.initial is None and self._directory.initial.exists():
            self.initial = await self._describe(self._directory.initial)

    def recut(self) -> None:
        """Have everything in chunks that everybody takes now."""
        self._round = {path: self._cut(blob) for path, blob in self._round.items()}
        self.initial = self.initial and self._cut(self.initial)

    async def give(self, devices: Mapping[str, Sequence[str]]) -> dict[str, Blob]:
        """Let every device have its download for this round; those that had none before, with what they are given.

        devices  name -> the encodings that it reads, what it likes best first
        """
        new = {device: wanted for device, wanted in devices.items() if device not in self._given}
        if not new:
            return {}
        self._given |= await asyncio.to_thread(self._ledger.downloads.make, self._number, new)
        for path in dict.fromkeys(self._given[device] for device in new):
            if path not in self._round:
                self._round[path] = self._cut(self._described.get(path) or await self._describe(path))
        return {device: self._round[self._given[device]] for device in new}

    def of(self, device: str) -> Blob | None:
        """What this device was given in this round."""
        path = self._given.get(device)
        return None if path is None else self._round[path]

    @property
    def largest(self) -> int:
        """Bytes of the largest download of the round so far."""
        return max((blob.size for blob in self._round.values()), default=0)

    async def open_template(self) -> bool:
        """Wait for the template of the run; whether there is one that was not known before."""
        if self._asked:
            return False
        self._asked = True
        path = await self._preparation.template()
        self.template = None if path is None else self._cut(await self._describe(path))
        return path is not None

    def wanted(self) -> dict[Blob, Path]:
        """What the broker should keep, and the files."""
        wanted = {blob: path for path, blob in self._round.items()}
        if self.initial is not None:
            wanted[self.initial] = self._directory.initial
        if self.template is not None:
            wanted[self.template] = self._directory.template
        return wanted

    async def _describe(self, path: Path) -> Blob:
        """In chunks of the size that it was published with, if it was."""
        blob = await asyncio.to_thread(describe, path, self._chunk())
        return next((known for known in self._published() if known.digest == blob.digest), blob)

    def _cut(self, blob: Blob) -> Blob:
        """In chunks that everybody takes; never in larger ones than before, for those that it is with the broker in
        are no hindrance."""
        return blob.model_copy(update={"chunk": min(self._chunk(), blob.chunk)})
