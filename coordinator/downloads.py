"""What each device is sent: of the global tensors the channels that it holds, in an encoding that it reads.

Devices that hold the same channels and read the same encoding share one file. Such a file is a pure function of the
round's global payload, the channels and the encoding, so a restart makes the same one again.

Blocking: reads and writes. Memory O(model).
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from coordinator.checkpoints import RunDirectory
from shared.channels import ChannelLayout
from shared.codec import open_payload, write_payload
from shared.encoding import Encoding, choose
from shared.errors import MalformedPayload
from shared.files import sync_directory, sync_file
from shared.pruning import take
from shared.tensors import Masks, Subnet


def write_tensors(path: Path, subnet: Subnet, run: str, number: int, encoding: Encoding = Encoding.FLOAT32) -> None:
    """Put a payload for the devices of round `number` at `path`, durably, whole or not at all."""
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as file:
        write_payload(file, subnet, encoding=encoding, run=run, round=number)
    sync_file(temporary)
    temporary.replace(path)
    sync_directory(path.parent)


def encodings(updates: Sequence[str]) -> tuple[Encoding, ...]:
    """How downloads may be encoded where updates may be so: the same, but int8 for topk, which carries only changes."""
    return tuple(Encoding.INT8 if name == Encoding.TOPK else Encoding(name) for name in updates)


def to_send(held: Masks | None, sent: Masks | None) -> Masks | None:
    """Of the channels that a device holds those that are sent at all; None, here as there: all of them.

    A group of which nothing would be left goes as it is held: a few bytes too many, where none are no payload.
    """
    if held is None or sent is None:
        chosen = sent if held is None else held
    else:
        chosen = {group: both if (both := mask & sent[group]).any() else mask for group, mask in held.items()}
    return None if chosen is None or all(mask.all() for mask in chosen.values()) else chosen


class Downloads:
    """Works in the run's folder; one call at a time."""

    def __init__(self, directory: RunDirectory, run: str, layout: ChannelLayout | None, updates: Sequence[str]) -> None:
        """layout: None unless the algorithm prunes; updates: the encodings that the plan allows for updates."""
        self._directory = directory
        self._run = run
        self._layout = layout
        self._encodings = encodings(updates)
        self._sent = lru_cache(maxsize=1)(self._read_sent)

    def remember(self, device: str, number: int, held: Masks | None) -> None:
        """Note the channels of this device's accepted update."""
        if self._layout is None:
            return
        path = self._directory.held(device)
        if held is None:
            path.unlink(missing_ok=True)
        else:
            with path.open("wb") as file:
                write_payload(file, Subnet({}, held), run=self._run, round=number)

    def make(self, number: int, devices: Mapping[str, Sequence[str]]) -> dict[str, Path]:
        """The file that each of the devices starts round `number` from, written where it is not there yet.

        devices  name -> the encodings that it reads, what it likes best first
        """
        return {device: self._make(number, device, wanted) for device, wanted in devices.items()}

    def _make(self, number: int, device: str, wanted: Sequence[str]) -> Path:
        encoding = choose(wanted, self._encodings)
        channels = None if self._layout is None else to_send(self._held(device), self._sent(number))
        source = self._directory.global_payload(number)
        if channels is None and encoding is Encoding.FLOAT32:
            return source
        path = self._directory.downloads(number) / f"{encoding}-{_name(channels)}.payload"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            with open_payload(source, limit=source.stat().st_size) as payload:
                tensors = payload.subnet.tensors
                if self._layout is not None:
                    tensors = take(tensors, self._layout, channels)
                write_tensors(path, Subnet(tensors, channels), self._run, number, encoding)
        return path

    def _held(self, device: str) -> Masks | None:
        """The channels of its last accepted update; None where that is not known, or is all of them."""
        assert self._layout is not None
        path = self._directory.held(device)
        try:
            with open_payload(path, limit=path.stat().st_size) as payload:
                held = payload.subnet.held
                if held is not None:
                    self._layout.check(held)
                return held
        except (FileNotFoundError, MalformedPayload):
            return None  # then it is sent more than it holds

    def _read_sent(self, number: int) -> Masks | None:
        source = self._directory.global_payload(number)
        with open_payload(source, limit=source.stat().st_size) as payload:
            return payload.subnet.held


def _name(channels: Masks | None) -> str:
    """The same for the same channels, and for no others."""
    if channels is None:
        return "dense"
    return hashlib.sha256(b"".join(np.packbits(mask).tobytes() for mask in channels.values())).hexdigest()[:32]
