"""Payload files in chunks: cut on one side, put together on the other, in any order and across restarts."""

import hashlib
import os
import struct
from pathlib import Path

import numpy as np

from shared.errors import DigestMismatch, MalformedPayload, StateError
from shared.files import atomic_write, sync_directory, sync_file
from shared.messages import Blob, Ranges

SAVE_EVERY = 64
"""Chunks after which progress is made durable: what a crash may cost."""


def describe(path: Path, chunk: int) -> Blob:
    """The announcement of this file, to be sent in chunks of `chunk` bytes. MalformedPayload if it is empty."""
    size = path.stat().st_size
    if size == 0:
        raise MalformedPayload(f"{path.name} is empty")
    with path.open("rb") as file:
        return Blob(digest=hashlib.file_digest(file, "sha256").hexdigest(), size=size, chunk=chunk)


def chunk_length(blob: Blob, index: int) -> int:
    """Bytes of that chunk. MalformedPayload if the blob has no such chunk."""
    if not 0 <= index < blob.chunks:
        raise MalformedPayload(f"chunk {index} of a payload of {blob.chunks} chunks")
    return min(blob.chunk, blob.size - index * blob.chunk)


def read_chunk(path: Path, blob: Blob, index: int) -> bytes:
    """That chunk of the file that `blob` describes. MalformedPayload if it has no such chunk, StateError if the file
    has changed its size since."""
    length = chunk_length(blob, index)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        data = os.pread(descriptor, length, index * blob.chunk)
    finally:
        os.close(descriptor)
    if len(data) != length:
        raise StateError(f"{path} is shorter than the {blob.size} bytes that were announced")
    return data


class Assembly:
    """A payload on its way to `path`, in `{path}.part`, with the chunks that are there in `{path}.have`.

    Opened again after any crash, it goes on where it was, or up to SAVE_EVERY chunks before: `.have` never claims a
    chunk that is not durably in `.part`. What was begun for another blob is thrown away; a `path` that is already
    this blob is complete. Memory O(chunk) plus one byte per chunk; the caller bounds `blob.size`. Holds no file open.
    OSError where the disk refuses.
    """

    def __init__(self, path: Path, blob: Blob) -> None:
        self.path = path
        self.blob = blob
        self._part = path.with_name(path.name + ".part")
        self._have_path = path.with_name(path.name + ".have")
        self._finished = path.exists() and path.stat().st_size == blob.size and describe(path, blob.chunk) == blob
        if self._finished:
            self._remove_progress()
            self._have = bytearray(b"\1") * blob.chunks
        else:
            self._have = self._load() or self._begin()
        self._count = self._have.count(1)
        self._unsaved = 0
        self._hash = hashlib.sha256()
        self._hashed = 0  # chunks that are in the hash

    @property
    def complete(self) -> bool:
        """Every chunk is there; `finish` tells whether they are the right ones."""
        return self._count == self.blob.chunks

    @property
    def received(self) -> int:
        """Bytes that are there."""
        last = self.blob.chunks - 1
        short = self.blob.chunk - chunk_length(self.blob, last)
        return self._count * self.blob.chunk - short * self._have[last]

    def add(self, index: int, data: bytes) -> bool:
        """Put one chunk in its place; False if it was there already. MalformedPayload if there is no such place."""
        if len(data) != chunk_length(self.blob, index):
            raise MalformedPayload(
                f"chunk {index} has {len(data)} bytes where {chunk_length(self.blob, index)} were announced"
            )
        if self._have[index]:
            return False
        descriptor = os.open(self._part, os.O_WRONLY)
        try:
            written = os.pwrite(descriptor, data, index * self.blob.chunk)
        finally:
            os.close(descriptor)
        if written != len(data):
            raise OSError(f"{self._part}: {written} of {len(data)} bytes were written; is the disk full?")
        if index == self._hashed:
            self._hash.update(data)
            self._hashed += 1
        self._have[index] = 1
        self._count += 1
        self._unsaved += 1
        if self._unsaved >= SAVE_EVERY and not self.complete:
            self.save()
        return True

    def missing(self, limit: int = 64) -> Ranges:
        """The first `limit` ranges of chunks that are not there."""
        ranges: list[tuple[int, int]] = []
        end = 0
        while len(ranges) < limit and (start := self._have.find(0, end)) >= 0:
            end = self._have.find(1, start)
            end = end if end >= 0 else self.blob.chunks
            ranges.append((start, end))
        return tuple(ranges)

    def save(self) -> None:
        """Make what is there durable: first the bytes, then the claim that they are there."""
        if not self._finished and self._unsaved:
            sync_file(self._part)
            atomic_write(self._have_path, self._header() + np.packbits(np.frombuffer(self._have, np.uint8)).tobytes())
            self._unsaved = 0

    def finish(self, *, durable: bool = True) -> Path:
        """The whole payload, verified and durable at `path`; to be called when `complete`.

        Not `durable`, it does not wait for the disk: for what can be fetched again. A new assembly looks at every byte
        of it before it believes in it.
        DigestMismatch if it is not the one that was announced: then everything is missing again.
        """
        if self._finished:
            return self.path
        if not self.complete:
            raise ValueError(f"{self.path.name}: {self._count} of {self.blob.chunks} chunks are there")
        while self._hashed < self.blob.chunks:
            self._hash.update(read_chunk(self._part, self.blob, self._hashed))
            self._hashed += 1
        if self._hash.hexdigest() != self.blob.digest:
            self._have, self._count, self._unsaved = self._begin(), 0, 0
            self._hash, self._hashed = hashlib.sha256(), 0
            raise DigestMismatch(f"{self.path.name}: the {self.blob.size} bytes are not those that were announced")
        if durable:
            sync_file(self._part)
        self._part.replace(self.path)
        if durable:
            sync_directory(self.path.parent)
        self._finished = True
        self._remove_progress()
        return self.path

    def discard(self) -> None:
        """Remove what is on its way; a finished payload stays. Ends this assembly."""
        self._remove_progress()

    def _begin(self) -> bytearray:
        """Nothing is there: an empty file of full size, and no claim."""
        self._remove_progress()
        with self._part.open("wb") as file:
            file.truncate(self.blob.size)
        return bytearray(self.blob.chunks)

    def _load(self) -> bytearray | None:
        """What an earlier assembly of this blob left, or None."""
        try:
            saved = self._have_path.read_bytes()
            size = self._part.stat().st_size
        except FileNotFoundError:
            return None
        header, bits = saved[: len(self._header())], saved[len(self._header()) :]
        if header != self._header() or size != self.blob.size or len(bits) != -(-self.blob.chunks // 8):
            return None
        return bytearray(np.unpackbits(np.frombuffer(bits, np.uint8), count=self.blob.chunks).tobytes())

    def _remove_progress(self) -> None:
        """The claim first, durably: it must never outlive the bytes."""
        if self._have_path.exists():
            self._have_path.unlink()
            sync_directory(self.path.parent)
        self._part.unlink(missing_ok=True)

    def _header(self) -> bytes:
        return bytes.fromhex(self.blob.digest) + struct.pack("<QI", self.blob.size, self.blob.chunk)
