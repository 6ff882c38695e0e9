"""The upload desk: devices offer, we grant. What is granted at any time is bounded, however many devices offer at once.

Decides in plain calls; what to send is returned. Only the chunks themselves go to the disk here.
"""

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from shared.chunks import Assembly
from shared.config import TransferSettings
from shared.errors import RefusedUpdate
from shared.messages import Chunk, Grant, Offer
from shared.transfer import grant, indices

Grants: TypeAlias = list[tuple[str, Grant]]
"""What to send: (device, grant)."""


@dataclass
class _Upload:
    """One update being received.

    progress     when a chunk arrived or was granted last
    outstanding  chunks that were granted and have not arrived
    """

    offer: Offer
    assembly: Assembly
    progress: float
    outstanding: set[int] = field(default_factory=set)


class UploadDesk:
    """Receives the updates of one round, one per device, into `folder`.

    limit  bytes of the largest update that can be acceptable
    """

    def __init__(self, settings: TransferSettings, *, limit: int, folder: Path) -> None:
        self._settings = settings
        self._limit = limit
        self._folder = folder
        self._uploads: dict[str, _Upload] = {}
        self._waiting: deque[str] = deque()
        self._credit = self._bound = int(settings.granted_mib * 2**20)

    @property
    def granted(self) -> int:
        """Bytes that devices may have under way now; never above `granted_mib`."""
        return self._bound - self._credit

    def offer(self, device: str, offer: Offer, now: float) -> Grants:
        """Start, or resume, receiving an update. An offer that is being received already changes nothing.

        RefusedUpdate where it is larger than an update can be, or its chunks are larger than may be granted.
        """
        blob = offer.blob
        if blob.size > self._limit:
            raise RefusedUpdate("too_large", f"{blob.size} bytes offered, an update has at most {self._limit}")
        if blob.chunk > self._bound:
            raise RefusedUpdate("too_large", f"chunks of {blob.chunk} bytes, at most {self._bound} are granted at once")
        if device in self._uploads:
            if self._uploads[device].offer == offer:
                return []
            self._remove(device)
        self._uploads[device] = _Upload(offer, Assembly(self._folder / device, blob), now)
        self._wait(device)
        return self._pump(now)

    def completed(self, device: str) -> tuple[Offer, Assembly] | None:
        """The update of this device if all of its chunks are there; it then leaves the desk."""
        upload = self._uploads.get(device)
        if upload is None or not upload.assembly.complete:
            return None
        self._remove(device)
        return upload.offer, upload.assembly

    def chunk(self, device: str, chunk: Chunk, now: float) -> Grants:
        """Take one chunk. Chunks of no upload, twice the same, or late ones do no harm.

        MalformedPayload where the chunk does not fit the offer.
        """
        upload = self._uploads.get(device)
        if upload is None or upload.offer.blob.digest != chunk.digest:
            return []
        if upload.assembly.add(chunk.index, chunk.data):
            upload.progress = now
        if chunk.index in upload.outstanding:
            upload.outstanding.remove(chunk.index)
            self._credit += upload.offer.blob.chunk
            if len(upload.outstanding) <= self._settings.window // 2:
                self._wait(device)
        return self._pump(now)

    def gone(self, device: str) -> None:
        """The device is offline: its credit returns; what arrived stays on the disk until it offers again."""
        if device in self._uploads:
            self._remove(device).assembly.save()

    def tick(self, now: float) -> Grants:
        """Grant again what was granted and did not arrive for `stall_s`."""
        for device, upload in self._uploads.items():
            if upload.outstanding and now - upload.progress >= self._settings.stall_s:
                self._take_back(upload)
                self._wait(device)
        return self._pump(now)

    def next_deadline(self) -> float | None:
        """When the next tick is due; None while nothing is under way."""
        granted = [upload.progress for upload in self._uploads.values() if upload.outstanding]
        return min(granted) + self._settings.stall_s if granted else None

    # ----------------------------------------------------------------------------------------------------------------

    def _pump(self, now: float) -> Grants:
        """Give credit to those that wait, in order of their waiting."""
        grants: Grants = []
        while self._waiting:
            upload = self._uploads[self._waiting[0]]
            blob = upload.offer.blob
            affordable = self._credit // blob.chunk
            if not affordable:
                break
            device = self._waiting.popleft()
            room = min(affordable, self._settings.window - len(upload.outstanding))
            if ranges := grant(upload.assembly.missing(), upload.outstanding, room):
                chosen = indices(ranges, blob.chunks)
                upload.outstanding.update(chosen)
                upload.progress = now
                self._credit -= len(chosen) * blob.chunk
                grants.append((device, Grant(run=upload.offer.run, digest=blob.digest, ranges=ranges)))
        return grants

    def _wait(self, device: str) -> None:
        if device not in self._waiting:
            self._waiting.append(device)

    def _take_back(self, upload: _Upload) -> None:
        self._credit += len(upload.outstanding) * upload.offer.blob.chunk
        upload.outstanding.clear()

    def _remove(self, device: str) -> _Upload:
        upload = self._uploads.pop(device)
        if device in self._waiting:
            self._waiting.remove(device)
        self._take_back(upload)
        return upload
