"""What each device is sent: its own channels, in its own encoding, one file for all who need the same."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pruned import close, decode, first, last, layout_of, pruning_config, pruning_run, read, update

from coordinator.checkpoints import RunDirectory
from coordinator.cohort import Needs
from coordinator.downloads import encodings, to_send
from coordinator.ledger import Ledger
from shared.codec import encode_payload
from shared.encoding import Encoding, decoded
from shared.errors import RefusedUpdate
from shared.pruning import take
from shared.tensors import Masks, Subnet

Start = Callable[..., RunDirectory]
ALL = tuple(Encoding)
DENSE = ("float32",)


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """start(overlap, encoding, name=...): the folder of a run that prunes."""
    return lambda overlap="agreed", encoding="link", name="run": pruning_run(
        tmp_path / name, pruning_config(overlap, encoding)
    )


def sent(ledger: Ledger, number: int, device: str, reads: tuple[str, ...] = DENSE) -> Path:
    return ledger.downloads.make(number, {device: reads})[device]


def same(one: Masks | None, other: Masks | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.keys() == other.keys() and all(np.array_equal(one[group], other[group]) for group in one)


def check_cut(directory: RunDirectory, number: int, path: Path, channels: Masks) -> None:
    """The file holds exactly these channels of the round's global tensors, in float32."""
    payload = read(path)
    assert same(payload.subnet.held, channels)
    assert (payload.header.run, payload.header.round) == ("run", number)
    whole = read(directory.global_payload(number)).subnet.tensors
    wanted = take(whole, layout_of(directory), channels)
    assert payload.subnet.tensors.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(payload.subnet.tensors[name], array)


# --- which channels -------------------------------------------------------------------------------------------------


def masks(**groups: str) -> Masks:
    return {group: np.array([bit == "1" for bit in bits]) for group, bits in groups.items()}


@pytest.mark.parametrize(
    ("held", "global_", "expected"),
    [
        (None, None, None),
        (masks(a="1100", b="01"), None, masks(a="1100", b="01")),
        (None, masks(a="0110", b="11"), masks(a="0110", b="11")),
        (masks(a="1100", b="11"), masks(a="0111", b="10"), masks(a="0100", b="10")),
        (masks(a="1100", b="11"), masks(a="0011", b="10"), masks(a="1100", b="10")),  # a: better too much than nothing
        (masks(a="1111", b="11"), None, None),
        (masks(a="1111", b="11"), masks(a="1111", b="11"), None),
        ({}, {}, None),  # a model without any channel that could go
    ],
)
def test_what_is_held_and_sent_at_all(held: Masks | None, global_: Masks | None, expected: Masks | None) -> None:
    assert same(to_send(held, global_), expected)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=8))
def test_a_device_is_never_sent_a_channel_that_it_gave_up_nor_nothing(units: list[tuple[bool, bool]]) -> None:
    held = np.array([unit[0] for unit in units]) | ~np.any([unit[0] for unit in units])
    result = to_send({"a": held}, {"a": np.array([unit[1] for unit in units])})
    chosen = np.ones(len(units), bool) if result is None else result["a"]
    assert chosen.any()
    assert not (chosen & ~held).any()


def test_downloads_are_never_topk() -> None:
    assert encodings(("float32", "float16", "int8", "topk")) == ("float32", "float16", "int8", "int8")
    assert encodings(("topk",)) == ("int8",)
    assert encodings(("float16",)) == ("float16",)


# --- files ----------------------------------------------------------------------------------------------------------


def test_before_anything_is_pruned_everybody_is_sent_the_global_payload_itself(start: Start) -> None:
    directory = start()
    ledger = Ledger(directory, 1)
    paths = ledger.downloads.make(1, {f"device-{i}": DENSE for i in range(1000)})
    assert set(paths.values()) == {directory.global_payload(1)}
    assert not directory.downloads(1).exists()


def test_three_devices_with_two_choices_of_channels_are_two_files(start: Start) -> None:
    directory = start()
    layout = layout_of(directory)
    half, quarter = first(layout, 0.5), first(layout, 0.25)
    updates = {"a": half, "b": quarter, "c": half}
    ledger = close(directory, 1, {name: update(directory, 1, held) for name, held in updates.items()})
    paths = ledger.downloads.make(2, dict.fromkeys("abc", DENSE))
    assert paths["a"] == paths["c"] != paths["b"]
    assert sorted(directory.downloads(2).iterdir()) == sorted({paths["a"], paths["b"]})
    check_cut(directory, 2, paths["a"], half)
    check_cut(directory, 2, paths["b"], quarter)
    assert paths["b"].stat().st_size < paths["a"].stat().st_size < directory.global_payload(2).stat().st_size


def test_a_thousand_devices_that_agree_share_one_file(start: Start) -> None:
    directory = start()
    half = first(layout_of(directory), 0.5)
    data = update(directory, 1, half)
    names = [f"device-{number}" for number in range(1000)]
    ledger = close(directory, 1, dict.fromkeys(names[:3], data))
    for name in names[3:]:
        ledger.downloads.remember(name, 1, half)
    assert len(set(ledger.downloads.make(2, dict.fromkeys(names, DENSE)).values())) == 1


def test_agreed_sends_what_somebody_of_the_last_round_still_holds(start: Start) -> None:
    directory = start("agreed")
    layout = layout_of(directory)
    half, other_half = first(layout, 0.5), last(layout, 0.5)
    most = {
        group: (np.arange(units) < 0.5 * units) | (np.arange(units) >= 0.75 * units)
        for group, units in layout.groups.items()
    }
    close(directory, 1, {"a": update(directory, 1, half), "b": update(directory, 1, most),
                         "away": update(directory, 1, other_half)})  # fmt: skip
    ledger = close(directory, 2, {"a": update(directory, 2, half), "b": update(directory, 2, most)})
    check_cut(directory, 3, sent(ledger, 3, "a"), half)
    check_cut(directory, 3, sent(ledger, 3, "b"), most)
    check_cut(directory, 3, sent(ledger, 3, "new"), most)
    check_cut(directory, 3, sent(ledger, 3, "away"), last(layout, 0.25))


def test_all_sends_what_everybody_of_the_last_round_held(start: Start) -> None:
    directory = start("all")
    layout = layout_of(directory)
    half, most = first(layout, 0.5), first(layout, 0.75)
    ledger = close(directory, 1, {"a": update(directory, 1, half), "b": update(directory, 1, most)})
    for device in ("a", "b", "new"):
        check_cut(directory, 2, sent(ledger, 2, device), half)
    ledger.downloads.remember("narrow", 1, first(layout, 0.25))
    check_cut(directory, 2, sent(ledger, 2, "narrow"), first(layout, 0.25))


def test_any_sends_each_what_it_holds_and_a_new_device_everything(start: Start) -> None:
    directory = start("any")
    layout = layout_of(directory)
    half, quarter = first(layout, 0.5), last(layout, 0.25)
    ledger = close(directory, 1, {"a": update(directory, 1, half), "b": update(directory, 1, quarter)})
    check_cut(directory, 2, sent(ledger, 2, "a"), half)
    check_cut(directory, 2, sent(ledger, 2, "b"), quarter)
    assert sent(ledger, 2, "new") == directory.global_payload(2)


def test_every_device_reads_its_own_encoding(start: Start) -> None:
    directory = start()
    half = first(layout_of(directory), 0.5)
    data = update(directory, 1, half)
    ledger = close(directory, 1, {"a": data, "b": data})
    wanted = {
        "a": ("float32", "float16"),
        "b": ("float16", "int8", "float32", "topk"),
        "c": ("topk", "int8", "float16", "float32"),
        "d": (),
        "e": ("from-the-future", "int8"),
    }
    for device in "cde":
        ledger.downloads.remember(device, 1, half)
    paths = ledger.downloads.make(2, wanted)
    assert [read(paths[device]).header.encoding for device in "abcde"] == [
        "float32", "float16", "int8", "float32", "int8",
    ]  # fmt: skip
    assert paths["a"] == paths["d"]
    assert paths["c"] == paths["e"]
    cut = read(paths["a"]).subnet
    for device in "bc":
        payload = read(paths[device])
        expected = decoded(cut, Encoding(payload.header.encoding)).tensors
        for name, array in payload.subnet.tensors.items():
            np.testing.assert_array_equal(array, expected[name])
    sizes = [paths[device].stat().st_size for device in "abc"]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(("named", "used"), [("float16", "float16"), ("topk", "int8"), ("float32", "float32")])
def test_the_run_may_name_the_encoding(start: Start, named: str, used: str) -> None:
    directory = start(encoding=named)
    ledger = Ledger(directory, 1)
    assert ledger.plan.encodings == (named,)
    assert read(sent(ledger, 1, "able", ALL)).header.encoding == used
    assert read(sent(ledger, 1, "old", ())).header.encoding == "float32"


def test_a_restart_makes_the_same_files_again(start: Start) -> None:
    directory = start()
    layout = layout_of(directory)
    data = {"a": update(directory, 1, first(layout, 0.5)), "b": update(directory, 1, first(layout, 0.25))}
    wanted = {"a": ("int8",), "b": DENSE, "new": ("float16",)}
    before = close(directory, 1, data).downloads.make(2, wanted)
    digests = {device: hashlib.sha256(path.read_bytes()).hexdigest() for device, path in before.items()}
    written = {path: path.stat().st_mtime_ns for path in before.values()}
    for lost in (False, True):
        if lost:
            for path in directory.downloads(2).iterdir():
                path.unlink()
        again = RunDirectory(directory.path)
        again.load()
        after = Ledger(again, 2).downloads.make(2, wanted)
        assert after == before
        assert digests == {device: hashlib.sha256(path.read_bytes()).hexdigest() for device, path in after.items()}
        if not lost:  # nor are they written again
            assert written == {path: path.stat().st_mtime_ns for path in after.values()}


def test_files_are_gone_two_rounds_later(start: Start) -> None:
    directory = start()
    half = first(layout_of(directory), 0.5)
    for number in (1, 2, 3):
        ledger = close(directory, number, {name: update(directory, number, half) for name in "ab"})
        assert sent(ledger, number + 1, "a").parent == directory.downloads(number + 1)
    assert sorted(directory.downloads(0).parent.iterdir()) == [directory.downloads(3), directory.downloads(4)]


# --- what is remembered ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage", [b"", b"TLR1", b"no payload", encode_payload(Subnet({}, masks(a="10")), run="run", round=1)]
)
def test_a_damaged_memory_costs_bytes_and_no_more(start: Start, damage: bytes) -> None:
    directory = start("any")
    half = first(layout_of(directory), 0.5)
    ledger = close(directory, 1, {name: update(directory, 1, half) for name in "ab"})
    directory.held("a").write_bytes(damage)
    assert sent(ledger, 2, "a") == directory.global_payload(2)
    check_cut(directory, 2, sent(ledger, 2, "b"), half)


def test_who_lost_its_state_is_sent_its_old_channels_until_it_holds_others(start: Start) -> None:
    directory = start("any")
    half = first(layout_of(directory), 0.5)
    ledger = close(directory, 1, {name: update(directory, 1, half) for name in "ab"})
    check_cut(directory, 2, sent(ledger, 2, "a"), half)
    ledger = close(directory, 2, {"a": update(directory, 2, None), "b": update(directory, 2, half)})
    assert sent(ledger, 3, "a") == directory.global_payload(3)
    check_cut(directory, 3, sent(ledger, 3, "b"), half)


def test_a_refused_update_is_not_remembered(start: Start) -> None:
    directory = start()
    ledger = Ledger(directory, 1)
    path = directory.incoming(1) / "a"
    path.write_bytes(update(directory, 1, first(layout_of(directory), 0.5), change=np.float32(1e30)))
    with pytest.raises(RefusedUpdate):
        ledger.take("a", 1, path, 0)
    assert not directory.held("a").exists()


# --- differences ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", ["any", "all", "agreed"])
@pytest.mark.parametrize("encoding", [Encoding.FLOAT16, Encoding.INT8, Encoding.TOPK])
def test_a_difference_is_folded_as_the_values_that_it_stands_for(
    start: Start, overlap: str, encoding: Encoding
) -> None:
    """Three devices, three choices of channels, one of them dense; `absolute` is sent what `lossy` is decoded to."""
    lossy, absolute = start(overlap, name="lossy"), start(overlap, name="absolute")
    layout = layout_of(lossy)
    updates, values = {}, {}
    for seed, (device, held) in enumerate({"a": None, "b": first(layout, 0.5), "c": last(layout, 0.75)}.items()):
        updates[device] = update(lossy, 1, held, 0.1, encoding, seed)
        payload, begin = decode(updates[device]), read(lossy.global_payload(1)).subnet.tensors
        cut = take(begin, layout, held)
        tensors = {
            name: array + cut[name] if array.dtype.kind == "f" else array
            for name, array in payload.subnet.tensors.items()
        }
        values[device] = encode_payload(Subnet(tensors, held), run="run", round=1, examples=5, weight=5.0)
    close(lossy, 1, updates)
    close(absolute, 1, values)
    one, other = read(lossy.global_payload(2)).subnet, read(absolute.global_payload(2)).subnet
    moved = 0
    for name, array in one.tensors.items():
        np.testing.assert_allclose(array, other.tensors[name], rtol=1e-6, atol=1e-6, err_msg=name)
        moved += not np.array_equal(array, read(lossy.global_payload(1)).subnet.tensors[name])
    assert moved == len(one.tensors)
    assert same(one.held, other.held)


def test_mixed_encodings_in_one_round_are_one_mean(start: Start) -> None:
    directory = start()
    encoded = {"a": Encoding.FLOAT32, "b": Encoding.FLOAT16, "c": Encoding.INT8}
    updates = {d: update(directory, 1, None, 0.1, e, seed) for seed, (d, e) in enumerate(encoded.items())}
    exact = [update(directory, 1, None, 0.1, Encoding.FLOAT32, seed) for seed in range(3)]
    close(directory, 1, updates)
    result = read(directory.global_payload(2)).subnet.tensors
    for name, array in result.items():
        if array.dtype.kind == "f":
            mean = np.mean([decode(data).subnet.tensors[name] for data in exact], axis=0)
            np.testing.assert_allclose(array, mean, atol=0.1 * 4 / 127)


def test_the_journal_says_how_an_update_was_encoded(start: Start) -> None:
    directory = start()
    ledger = Ledger(directory, 1)
    path = directory.incoming(1) / "a"
    path.write_bytes(update(directory, 1, None, 0.1, Encoding.INT8))
    size = path.stat().st_size
    entry = ledger.take("a", 1, path, 0)
    assert (entry["encoding"], entry["bytes"], entry["kept"]) == ("int8", size, 1.0)
    assert Ledger(RunDirectory(directory.path), 1).accepted(1) == {"a": entry}


def test_an_encoding_that_the_run_does_not_take_is_refused(start: Start) -> None:
    directory = start(encoding="float16")
    ledger = Ledger(directory, 1)
    for device, encoding, code in (("a", Encoding.FLOAT16, None), ("b", Encoding.INT8, "wrong_encoding")):
        path = directory.incoming(1) / device
        path.write_bytes(update(directory, 1, None, 0.1, encoding))
        if code is None:
            ledger.take(device, 1, path, 0)
        else:
            with pytest.raises(RefusedUpdate) as refused:
                ledger.take(device, 1, path, 0)
            assert refused.value.code == code


# --- who can be asked -----------------------------------------------------------------------------------------------


def test_a_device_that_may_start_shrunk_needs_little_more_than_one_dense_copy() -> None:
    assert Needs.of(64 * 2**20, prunes=False).memory_mib == 4 * 64
    assert Needs.of(64 * 2**20, prunes=True).memory_mib == 64 + 4 * 64 / 64
    assert Needs.of(1, prunes=True).packet == Needs.of(1, prunes=False).packet > 0
