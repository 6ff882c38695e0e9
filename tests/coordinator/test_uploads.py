"""The upload desk: bounded credit, fairness, lost chunks, and everything that devices may do wrong."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from coordinator.uploads import Grants, UploadDesk
from shared.config import TransferSettings
from shared.errors import MalformedPayload, RefusedUpdate
from shared.messages import Blob, Chunk, Offer

CHUNK = 1024


def content(device: str, size: int) -> bytes:
    return hashlib.shake_256(device.encode()).digest(size)


def offer(device: str, size: int, chunk: int = CHUNK) -> Offer:
    digest = hashlib.sha256(content(device, size)).hexdigest()
    return Offer(run="run", round=1, blob=Blob(digest=digest, size=size, chunk=chunk))


def chunk_of(device: str, offered: Offer, index: int) -> Chunk:
    data = content(device, offered.blob.size)[index * offered.blob.chunk : (index + 1) * offered.blob.chunk]
    return Chunk(digest=offered.blob.digest, index=index, data=data)


def desk(folder: Path, *, window: int = 4, granted: int = 8 * CHUNK, limit: int = 2**20) -> UploadDesk:
    return UploadDesk(
        TransferSettings(window=window, granted_mib=granted / 2**20, stall_s=10), limit=limit, folder=folder
    )


def granted(grants: Grants) -> dict[str, list[int]]:
    return {device: [i for first, end in grant.ranges for i in range(first, end)] for device, grant in grants}


def send_all(uploads: UploadDesk, device: str, offered: Offer, grants: Grants, now: float = 1) -> list[int]:
    """Send whatever is granted until nothing is; the indices in the order in which they were granted."""
    order: list[int] = []
    waiting = granted(grants).get(device, [])
    while waiting:
        order += waiting
        answers = [uploads.chunk(device, chunk_of(device, offered, index), now) for index in waiting]
        waiting = [index for answer in answers for index in granted(answer).get(device, [])]
    return order


def test_an_update_is_granted_by_the_window_and_complete_at_the_end(tmp_path: Path) -> None:
    uploads, offered = desk(tmp_path), offer("a", 10 * CHUNK + 1)
    grants = uploads.offer("a", offered, 0)
    assert granted(grants) == {"a": [0, 1, 2, 3]}
    assert uploads.granted == 4 * CHUNK
    assert granted(uploads.chunk("a", chunk_of("a", offered, 0), 0)) == {}
    assert granted(uploads.chunk("a", chunk_of("a", offered, 1), 0)) == {"a": [4, 5]}  # half has arrived
    assert uploads.completed("a") is None
    for index in range(2, 11):
        uploads.chunk("a", chunk_of("a", offered, index), 0)
    completed = uploads.completed("a")
    assert completed is not None
    assert completed[0] == offered
    assert completed[1].finish().read_bytes() == content("a", 10 * CHUNK + 1)
    assert uploads.granted == 0
    assert uploads.completed("a") is None


def test_all_chunks_are_granted_once_in_order(tmp_path: Path) -> None:
    uploads, offered = desk(tmp_path), offer("a", 37 * CHUNK)
    assert send_all(uploads, "a", offered, uploads.offer("a", offered, 0)) == list(range(37))


def test_credit_is_bounded_and_goes_round(tmp_path: Path) -> None:
    uploads = desk(tmp_path, window=4, granted=8 * CHUNK)
    offers = {name: offer(name, 8 * CHUNK) for name in "abc"}
    first = [granted(uploads.offer(name, offered, 0)) for name, offered in offers.items()]
    assert first == [{"a": [0, 1, 2, 3]}, {"b": [0, 1, 2, 3]}, {}]  # c waits
    assert granted(uploads.chunk("a", chunk_of("a", offers["a"], 0), 0)) == {"c": [0]}  # and is served first
    assert uploads.granted == 8 * CHUNK


def test_what_a_device_that_is_gone_held_goes_to_the_next(tmp_path: Path) -> None:
    uploads = desk(tmp_path, window=8)
    uploads.offer("a", offer("a", 8 * CHUNK), 0)
    assert uploads.offer("b", offer("b", 8 * CHUNK), 0) == []
    uploads.gone("a")
    assert uploads.granted == 0
    assert granted(uploads.tick(1)) == {"b": list(range(8))}
    uploads.gone("nobody")


def test_what_arrived_before_a_device_left_is_not_sent_again(tmp_path: Path) -> None:
    uploads, offered = desk(tmp_path), offer("a", 6 * CHUNK)
    uploads.offer("a", offered, 0)
    for index in (0, 2):
        uploads.chunk("a", chunk_of("a", offered, index), 0)
    uploads.gone("a")
    assert granted(desk(tmp_path).offer("a", offered, 5)) == {"a": [1, 3, 4, 5]}  # also after a restart


def test_lost_chunks_are_granted_again_after_a_stall(tmp_path: Path) -> None:
    uploads, offered = desk(tmp_path), offer("a", 4 * CHUNK)
    uploads.offer("a", offered, 0)
    uploads.chunk("a", chunk_of("a", offered, 1), 3)
    assert uploads.next_deadline() == 13
    assert uploads.tick(12.9) == []
    assert granted(uploads.tick(13)) == {"a": [0, 2, 3]}
    assert uploads.next_deadline() == 23
    for index in (0, 2, 3):
        uploads.chunk("a", chunk_of("a", offered, index), 14)
    assert uploads.completed("a") is not None
    assert uploads.next_deadline() is None


def test_duplicates_and_strangers_change_nothing(tmp_path: Path) -> None:
    uploads, offered = desk(tmp_path), offer("a", 4 * CHUNK)
    uploads.offer("a", offered, 0)
    uploads.chunk("a", chunk_of("a", offered, 0), 0)
    held = uploads.granted
    assert uploads.chunk("a", chunk_of("a", offered, 0), 0) == []
    assert uploads.chunk("b", chunk_of("a", offered, 1), 0) == []
    other = offer("b", 4 * CHUNK)
    assert uploads.chunk("a", chunk_of("b", other, 1), 0) == []
    assert uploads.offer("a", offered, 0) == []  # the same offer again
    assert uploads.granted == held


def test_another_offer_takes_the_place_of_the_first(tmp_path: Path) -> None:
    uploads = desk(tmp_path)
    uploads.offer("a", offer("a", 4 * CHUNK), 0)
    second = offer("b", 5 * CHUNK)
    assert granted(uploads.offer("a", second, 0)) == {"a": [0, 1, 2, 3]}
    assert uploads.granted == 4 * CHUNK


@pytest.mark.parametrize(
    ("index", "data"), [(4, b"x" * CHUNK), (0, b"x"), (0, b"x" * (CHUNK + 1)), (2**30, b"x" * CHUNK)]
)
def test_chunks_that_do_not_fit_the_offer(tmp_path: Path, index: int, data: bytes) -> None:
    uploads, offered = desk(tmp_path), offer("a", 4 * CHUNK)
    uploads.offer("a", offered, 0)
    with pytest.raises(MalformedPayload):
        uploads.chunk("a", Chunk(digest=offered.blob.digest, index=index, data=data), 0)


@pytest.mark.parametrize(
    "blob",
    [
        Blob(digest="0" * 64, size=2**20 + 1, chunk=CHUNK),
        Blob(digest="0" * 64, size=10 * 2**30, chunk=CHUNK),
        Blob(digest="0" * 64, size=CHUNK, chunk=8 * CHUNK + 1),
    ],
)
def test_what_cannot_be_an_update_is_refused_and_costs_no_disk(tmp_path: Path, blob: Blob) -> None:
    uploads = desk(tmp_path)
    with pytest.raises(RefusedUpdate) as refusal:
        uploads.offer("a", Offer(run="run", round=1, blob=blob), 0)
    assert refusal.value.code == "too_large"
    assert list(tmp_path.iterdir()) == []


class AnyTraffic(RuleBasedStateMachine):
    """Devices that lose, repeat and reorder what they send, come and go: the bound holds, and everything arrives."""

    names = ("a", "b", "c")

    @initialize(window=st.integers(1, 6), bound=st.integers(1, 7))
    def start(self, window: int, bound: int) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.bound = bound * CHUNK
        self.uploads = desk(Path(self.folder.name), window=window, granted=self.bound)
        self.offers = {name: offer(name, (3 + 4 * place) * CHUNK + place) for place, name in enumerate(self.names)}
        self.now = 0.0
        self.wire: list[tuple[str, int]] = []
        self.done: set[str] = set()

    def take(self, grants: Grants) -> None:
        self.wire += [(device, index) for device, indices in granted(grants).items() for index in indices]

    @rule(name=st.sampled_from(names))
    def offers_again(self, name: str) -> None:
        if name not in self.done:
            self.take(self.uploads.offer(name, self.offers[name], self.now))
            self.look(name)

    @rule(data=st.data(), lost=st.booleans(), twice=st.booleans())
    def something_arrives(self, data: st.DataObject, lost: bool, twice: bool) -> None:
        if self.wire:
            device, index = self.wire.pop(data.draw(st.integers(0, len(self.wire) - 1)))
            for _ in range(0 if lost else 1 + twice):
                self.take(self.uploads.chunk(device, chunk_of(device, self.offers[device], index), self.now))
                self.look(device)

    @rule(name=st.sampled_from(names))
    def leaves(self, name: str) -> None:
        self.uploads.gone(name)

    @rule(seconds=st.sampled_from([1.0, 10.0]))
    def waits(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.uploads.tick(self.now))

    def look(self, name: str) -> None:
        if (completed := self.uploads.completed(name)) is not None:
            assert completed[1].finish().read_bytes() == content(name, self.offers[name].blob.size)
            self.done.add(name)

    @invariant()
    def never_more_than_the_bound(self) -> None:
        if hasattr(self, "uploads"):
            assert 0 <= self.uploads.granted <= self.bound

    def teardown(self) -> None:
        if not hasattr(self, "uploads"):
            return
        for name in self.names:
            self.offers_again(name)
        for _ in range(200):
            while self.wire:
                device, index = self.wire.pop(0)
                self.take(self.uploads.chunk(device, chunk_of(device, self.offers[device], index), self.now))
                self.look(device)
            if self.done == set(self.names):
                break
            self.waits(10.0)
        assert self.done == set(self.names)
        assert self.uploads.granted == 0
        self.folder.cleanup()


AnyTraffic.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyTraffic = AnyTraffic.TestCase
