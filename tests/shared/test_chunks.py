"""Chunks and their assembly: any order, any crash, and never a byte that was not announced."""

import hashlib
import os
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import chunks as chunks_module
from shared.chunks import SAVE_EVERY, Assembly, chunk_length, describe, read_chunk
from shared.errors import DigestMismatch, MalformedPayload, StateError
from shared.files import atomic_write
from shared.messages import Blob

CHUNK = 512


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """200 chunks and a short one."""
    path = tmp_path / "source"
    path.write_bytes(random.Random(1).randbytes(CHUNK * 200 + 17))
    return path


def left_behind(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()} - {"source"}


# --- one side -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "lengths"), [(1, [1]), (512, [512]), (513, [512, 1]), (1024, [512, 512])])
def test_a_file_is_cut_into_chunks(tmp_path: Path, size: int, lengths: list[int]) -> None:
    path = tmp_path / "source"
    path.write_bytes(bytes(range(256)) * 4)
    os.truncate(path, size)
    blob = describe(path, CHUNK)
    assert blob == Blob(digest=hashlib.sha256(path.read_bytes()).hexdigest(), size=size, chunk=CHUNK)
    pieces = [read_chunk(path, blob, index) for index in range(blob.chunks)]
    assert [len(piece) for piece in pieces] == [chunk_length(blob, index) for index in range(blob.chunks)] == lengths
    assert b"".join(pieces) == path.read_bytes()


def test_an_empty_file_is_no_payload(tmp_path: Path) -> None:
    (tmp_path / "source").touch()
    with pytest.raises(MalformedPayload, match="empty"):
        describe(tmp_path / "source", CHUNK)


@pytest.mark.parametrize("index", [-1, 201, 2**31])
def test_a_chunk_that_is_not_there_cannot_be_read(source: Path, index: int) -> None:
    with pytest.raises(MalformedPayload, match=f"chunk {index} of a payload of 201 chunks"):
        read_chunk(source, describe(source, CHUNK), index)


def test_a_file_that_was_cut_since_is_noticed(source: Path) -> None:
    blob = describe(source, CHUNK)
    os.truncate(source, 1000)
    with pytest.raises(StateError, match="shorter"):
        read_chunk(source, blob, 1)


# --- the other side -------------------------------------------------------------------------------------------------


@given(order=st.permutations(range(9)), again=st.lists(st.integers(0, 8), max_size=5), tail=st.integers(1, CHUNK))
@settings(max_examples=50)
def test_chunks_arrive_in_any_order_and_more_than_once(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], again: list[int], tail: int
) -> None:
    folder = tmp_path_factory.mktemp("assembly")
    (folder / "source").write_bytes(random.Random(tail).randbytes(CHUNK * 8 + tail))
    blob = describe(folder / "source", CHUNK)
    assembly = Assembly(folder / "payload", blob)
    arrived: set[int] = set()
    for index in [*order[:5], *again, *order]:
        assert assembly.add(index, read_chunk(folder / "source", blob, index)) == (index not in arrived)
        arrived.add(index)
        assert assembly.received == sum(chunk_length(blob, index) for index in arrived)
        assert {i for first, last in assembly.missing() for i in range(first, last)} == set(range(9)) - arrived
        assert assembly.complete == (len(arrived) == 9)
    assert assembly.finish() == folder / "payload"
    assert (folder / "payload").read_bytes() == (folder / "source").read_bytes()
    assert left_behind(folder) == {"payload"}
    assert assembly.add(0, read_chunk(folder / "source", blob, 0)) is False
    assert assembly.finish() == folder / "payload"


def test_missing_names_the_first_ranges_up_to_the_limit(source: Path, tmp_path: Path) -> None:
    blob = describe(source, CHUNK)
    assembly = Assembly(tmp_path / "payload", blob)
    assert assembly.missing() == ((0, 201),)
    for index in range(1, 201, 2):
        assembly.add(index, read_chunk(source, blob, index))
    assert assembly.missing(2) == ((0, 1), (2, 3))
    assert len(assembly.missing()) == 64
    assert len(assembly.missing(1000)) == 101
    assert assembly.missing(1000)[-1] == (200, 201)


@pytest.mark.parametrize(
    ("index", "length"), [(0, 511), (0, 513), (0, 0), (200, 16), (200, 512), (201, 17), (-1, 17), (2**31 - 1, 512)]
)
def test_a_chunk_of_the_wrong_place_or_length_is_refused(source: Path, tmp_path: Path, index: int, length: int) -> None:
    assembly = Assembly(tmp_path / "payload", describe(source, CHUNK))
    with pytest.raises(MalformedPayload, match=f"chunk {index}"):
        assembly.add(index, bytes(length))
    assert assembly.received == 0
    assert (tmp_path / "payload.part").stat().st_size == source.stat().st_size


def test_an_assembly_that_is_not_complete_cannot_be_finished(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 of 201"):
        Assembly(tmp_path / "payload", describe(source, CHUNK)).finish()


@pytest.mark.parametrize("backwards", [False, True])
def test_other_bytes_than_announced_are_discarded_and_fetched_anew(
    source: Path, tmp_path: Path, backwards: bool
) -> None:
    blob = describe(source, CHUNK)
    assembly = Assembly(tmp_path / "payload", blob)
    for attempt in range(2):
        for index in sorted(range(blob.chunks), reverse=backwards):
            data = bytearray(read_chunk(source, blob, index))
            data[-1] ^= attempt == 0 and index == 77
            assembly.add(index, bytes(data))
        if attempt == 0:
            with pytest.raises(DigestMismatch, match="payload"):
                assembly.finish()
            assert assembly.missing() == ((0, 201),)
            assert assembly.received == 0
            assert left_behind(tmp_path) == {"payload.part"}
    assert assembly.finish().read_bytes() == source.read_bytes()


def test_discard_leaves_nothing(source: Path, tmp_path: Path) -> None:
    blob = describe(source, CHUNK)
    assembly = Assembly(tmp_path / "payload", blob)
    assembly.add(3, read_chunk(source, blob, 3))
    assembly.save()
    assert left_behind(tmp_path) == {"payload.part", "payload.have"}
    assembly.discard()
    assert left_behind(tmp_path) == set()


# --- restarts -------------------------------------------------------------------------------------------------------


def test_it_goes_on_where_it_was_saved(source: Path, tmp_path: Path) -> None:
    blob = describe(source, CHUNK)
    first = Assembly(tmp_path / "payload", blob)
    for index in (0, 1, 2, 200, 100):
        first.add(index, read_chunk(source, blob, index))
    first.save()
    first.add(50, read_chunk(source, blob, 50))  # after the last save: may be lost, must not be claimed

    second = Assembly(tmp_path / "payload", blob)
    assert second.missing() == ((3, 100), (101, 200))
    assert second.received == 4 * CHUNK + 17
    for index in range(201):
        second.add(index, read_chunk(source, blob, index))
    assert second.finish().read_bytes() == source.read_bytes()


def test_progress_is_saved_every_so_many_chunks(source: Path, tmp_path: Path) -> None:
    blob = describe(source, CHUNK)
    first = Assembly(tmp_path / "payload", blob)
    for index in range(2 * SAVE_EVERY + 5):
        first.add(index, read_chunk(source, blob, index))
    assert Assembly(tmp_path / "payload", blob).missing() == ((2 * SAVE_EVERY, 201),)


def test_what_was_begun_for_another_blob_is_thrown_away(source: Path, tmp_path: Path) -> None:
    blob = describe(source, CHUNK)
    for other in (blob.model_copy(update={"digest": "0" * 64}), blob.model_copy(update={"chunk": 1024})):
        assembly = Assembly(tmp_path / "payload", blob)
        assembly.add(1, read_chunk(source, blob, 1))
        assembly.save()
        fresh = Assembly(tmp_path / "payload", other)
        assert fresh.received == 0
        assert not any((tmp_path / "payload.part").read_bytes())


@pytest.mark.parametrize("damage", ["no part", "short part", "short claim", "no claim"])
def test_progress_that_cannot_be_trusted_is_not(source: Path, tmp_path: Path, damage: str) -> None:
    blob = describe(source, CHUNK)
    assembly = Assembly(tmp_path / "payload", blob)
    assembly.add(1, read_chunk(source, blob, 1))
    assembly.save()
    match damage:
        case "no part":
            (tmp_path / "payload.part").unlink()
        case "short part":
            os.truncate(tmp_path / "payload.part", 1000)
        case "short claim":
            os.truncate(tmp_path / "payload.have", 50)
        case "no claim":
            (tmp_path / "payload.have").unlink()
    assert Assembly(tmp_path / "payload", blob).missing() == ((0, 201),)


def test_a_payload_that_is_already_there_is_complete(source: Path, tmp_path: Path) -> None:
    blob = describe(source, CHUNK)
    (tmp_path / "payload").write_bytes(source.read_bytes())
    (tmp_path / "payload.have").write_bytes(b"left by a crash after the rename")
    assembly = Assembly(tmp_path / "payload", blob)
    assert assembly.complete
    assert assembly.missing() == ()
    assert assembly.received == blob.size
    assert assembly.finish() == tmp_path / "payload"
    assert left_behind(tmp_path) == {"payload"}


def test_another_payload_at_the_path_is_replaced(source: Path, tmp_path: Path) -> None:
    blob = describe(source, CHUNK)
    (tmp_path / "payload").write_bytes(bytes(blob.size))
    assembly = Assembly(tmp_path / "payload", blob)
    assert not assembly.complete
    for index in range(blob.chunks):
        assembly.add(index, read_chunk(source, blob, index))
    assert assembly.finish().read_bytes() == source.read_bytes()


def test_bytes_are_durable_before_they_are_claimed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def synced(path: Path) -> None:
        steps.append(f"sync {path.name}")

    def written(path: Path, data: bytes) -> None:
        steps.append(f"claim {path.name}")
        atomic_write(path, data)

    monkeypatch.setattr(chunks_module, "sync_file", synced)
    monkeypatch.setattr(chunks_module, "atomic_write", written)
    blob = describe(source, CHUNK)
    assembly = Assembly(tmp_path / "payload", blob)
    for index in range(blob.chunks):
        assembly.add(index, read_chunk(source, blob, index))
    assert steps == ["sync payload.part", "claim payload.have"] * (200 // SAVE_EVERY)
    assembly.finish()
    assert steps[-1] == "sync payload.part"
    assert (tmp_path / "payload").exists()


RECEIVER = """
import os, sys
from pathlib import Path
from shared.chunks import Assembly, describe, read_chunk
source, target = Path(sys.argv[1]), Path(sys.argv[2])
blob = describe(source, 512)
assembly = Assembly(target, blob)
print(assembly.received, flush=True)
for first, last in assembly.missing(1000):
    for index in range(first, last):
        assembly.add(index, read_chunk(source, blob, index))
        print(index, flush=True)
assembly.finish()
print("done", flush=True)
"""


def test_killed_at_any_chunk_it_goes_on_and_claims_nothing_false(source: Path, tmp_path: Path) -> None:
    blob = describe(source, CHUNK)
    dice = random.Random(3)
    before = 0
    for _ in range(20):
        command = [sys.executable, "-c", RECEIVER, str(source), str(tmp_path / "payload")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as receiver:
            assert receiver.stdout is not None
            resumed = int(receiver.stdout.readline())
            assert resumed >= before
            steps = dice.randrange(1, 90)
            said = [receiver.stdout.readline().strip() for _ in range(steps)]
            receiver.kill()
        if "done" in said:
            break
        claims = Assembly(tmp_path / "payload", blob)
        gaps = {index for first, last in claims.missing(1000) for index in range(first, last)}
        for index in set(range(blob.chunks)) - gaps:
            assert read_chunk(tmp_path / "payload.part", blob, index) == read_chunk(source, blob, index)
        before = claims.received
    else:
        pytest.fail(f"not finished after 20 restarts: {before} bytes")
    assert (tmp_path / "payload").read_bytes() == source.read_bytes()
    assert left_behind(tmp_path) == {"payload"}


def test_memory_is_that_of_one_chunk(tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(bytes(64 << 20))
    tracemalloc.start()
    blob = describe(path, 120 << 10)
    assembly = Assembly(tmp_path / "payload", blob)
    for index in reversed(range(blob.chunks)):
        assembly.add(index, read_chunk(path, blob, index))
    assembly.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    atomic_write(path, b"old")
    assert path.read_bytes() == b"old"

    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic_write(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert left_behind(tmp_path) == {"state"}
    monkeypatch.undo()
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"
