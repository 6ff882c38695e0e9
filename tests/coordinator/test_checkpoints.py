"""Killed between any two steps on the disk and started again, a run ends as if nothing had happened."""

import shutil
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from crashes import Crash, Steps

from coordinator.checkpoints import Checkpoint, RunDirectory, RunRecord
from coordinator.events import Phase, Snapshot
from coordinator.journal import read_journal
from coordinator.ledger import Ledger
from shared.aggregation import Overlap, Update, WeightedMean
from shared.codec import decode_payload, encode_payload, open_payload
from shared.config_rounds import AggregationSettings
from shared.errors import ConfigError, StateError
from shared.messages import Blob, Report
from shared.tensors import Subnet, Tensors

Begin = Callable[..., RunDirectory]
DEVICES = {"a": 1, "b": 3}
"""Device -> its examples."""
ROUNDS = 2


def tensors_of(path: Path) -> Tensors:
    with open_payload(path, limit=2**30) as payload:
        return {name: array.copy() for name, array in payload.subnet.tensors.items()}


def update(directory: RunDirectory, device: str, number: int) -> bytes:
    """What a device makes of round `number`: everything plus its examples."""
    examples = DEVICES[device]
    received = tensors_of(directory.global_payload(number))
    changed = {name: array + np.asarray(examples, array.dtype) for name, array in received.items()}
    return encode_payload(Subnet(changed), run="run", round=number, examples=examples, weight=float(examples))


def go_on(directory: RunDirectory, receipts: set[tuple[int, str]]) -> None:
    """What a coordinator does from its start to the end of the last round; devices keep what has no receipt."""
    checkpoint = directory.load()
    if checkpoint is None:
        checkpoint = Checkpoint(Snapshot())
        directory.save(checkpoint)
    while checkpoint.round <= ROUNDS:
        number = checkpoint.round
        ledger = Ledger(directory, number)
        done = set(ledger.accepted(number))
        assert {device for rounds, device in receipts if rounds == number} <= done, "lost after its receipt"
        for device, examples in DEVICES.items():
            if device not in done:
                received = directory.incoming(number) / device
                received.write_bytes(update(directory, device, number))
                ledger.take(device, number, received, examples)
                directory.confirm(number)
                receipts.add((number, device))
        ledger.close(number)
        line = {"event": "round", "round": number, "accepted": [*map(entry, directory.accepted(number))]}
        checkpoint = Checkpoint(Snapshot(closed=number), line)
        directory.save(checkpoint)


def entry(device: str) -> dict[str, object]:
    """What of a journal's entry is read again."""
    return {"device": device, "norm": 1.0, "weight": 1.0}


def expected(directory: RunDirectory) -> Tensors:
    """Every round moves everything by (1 * 1 + 3 * 3) / 4, and a counter by its maximum."""
    first = tensors_of(directory.global_payload(1))
    return {
        name: array + np.asarray(ROUNDS * (2.5 if array.dtype.kind == "f" else 3), array.dtype)
        for name, array in first.items()
    }


def check_end(directory: RunDirectory, wanted: Tensors) -> None:
    result = tensors_of(directory.global_payload(ROUNDS + 1))
    for name, array in wanted.items():
        np.testing.assert_allclose(result[name], array, rtol=1e-6, err_msg=name)
    lines = list(read_journal(directory.journal_path))
    assert lines == [{"event": "round", "round": n, "accepted": [entry("a"), entry("b")]} for n in range(1, ROUNDS + 1)]
    assert sorted(path.name for path in (directory.path / "globals").iterdir()) == ["00002.payload", "00003.payload"]
    assert [path.name for path in (directory.path / "rounds").iterdir()] == ["00003"]


def test_killed_before_every_step(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    calm = begin("calm")
    wanted = expected(calm)
    with monkeypatch.context() as patch:
        steps = Steps(patch, -1, calm.path)
        go_on(calm, set())
    check_end(calm, wanted)
    assert steps.count > 40
    for at in range(steps.count):
        directory = begin(f"killed-{at}")
        receipts: set[tuple[int, str]] = set()
        with monkeypatch.context() as patch:
            Steps(patch, at, directory.path)
            with pytest.raises(Crash):
                go_on(directory, receipts)
        go_on(RunDirectory(directory.path), receipts)
        check_end(directory, wanted)


def test_killed_again_and_again(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dies after ever more steps until it gets through."""
    directory, receipts = begin(), set[tuple[int, str]]()
    wanted = expected(directory)
    for at in range(200):
        with monkeypatch.context() as patch:
            Steps(patch, at, directory.path)
            try:
                go_on(RunDirectory(directory.path), receipts)
            except Crash:
                continue
        break
    check_end(directory, wanted)


FOUR = {"a": 1.0, "a-1": 1e-3, "b": -1.0, "c": 3e-5}
"""Device -> how far it moves everything: sums of float32 that are different ones in every order."""


def noisy(directory: RunDirectory, device: str) -> bytes:
    """An update of round 1 that no exact sum can be made of."""
    draw = np.random.default_rng(list(FOUR).index(device))
    received = tensors_of(directory.global_payload(1))
    changed = {
        name: (array + FOUR[device] * draw.normal(size=array.shape)).astype(array.dtype)
        for name, array in received.items()
    }
    changed |= {name: abs(array) for name, array in changed.items() if "running_var" in name}
    return encode_payload(Subnet(changed), run="run", round=1, examples=7, weight=7.0)


@pytest.mark.parametrize("rule", ["mean", "trimmed-mean", "median", "clipped-mean"])
def test_the_order_of_arrival_shows_in_no_bit_of_the_result_and_a_restart_neither(
    begin: Begin, rule: Literal["mean", "trimmed-mean", "median", "clipped-mean"]
) -> None:
    updates = {device: noisy(begin(f"made-by-{device}"), device) for device in FOUR}
    results = set()
    for index, order in enumerate(list(permutations(FOUR))[:: 1 if rule == "mean" else 4]):
        directory = begin(f"order-{index}")
        record = directory.record()
        ruled = record.config.model_copy(update={"aggregation": AggregationSettings(rule=rule, trim=0.25)})
        directory.create(RunRecord(record.run, ruled))
        directory.save(Checkpoint(Snapshot()))
        ledger = Ledger(directory, 1)
        for place, device in enumerate(order):
            if place == index % 5:  # dead between two of them, before the first, or after the last
                ledger = Ledger(RunDirectory(directory.path), 1)
                assert list(ledger.accepted(1)) == sorted(order[:place])
            path = directory.incoming(1) / device
            path.write_bytes(updates[device])
            ledger.take(device, 1, path, 0)
        if index % 5 == 4:
            ledger = Ledger(RunDirectory(directory.path), 1)
        ledger.close(1)
        results.add(directory.global_payload(2).read_bytes())
        assert ledger.exposed == 0
        shutil.rmtree(directory.path)
    assert len(results) == 1
    mean = WeightedMean(None, overlap=Overlap.ANY)
    for device in sorted(updates):
        mean.add(Update(decode_payload(updates[device], limit=2**30).subnet, 7.0))
    plain = mean.result(tensors_of(begin().global_payload(1))).tensors
    found = decode_payload(results.pop(), limit=2**30).subnet.tensors
    same = all(np.array_equal(found[name], array) for name, array in plain.items())
    assert same == (rule == "mean"), "or it was not this rule"


def test_the_order_in_which_these_updates_are_folded_would_show(begin: Begin) -> None:
    """Or the test above could not fail."""
    directory = begin()
    results = set()
    for order in permutations(FOUR):
        mean = WeightedMean(None, overlap=Overlap.ANY)
        for device in order:
            payload = decode_payload(noisy(directory, device), limit=2**30)
            mean.add(Update(payload.subnet, 7.0))
        tensors = mean.result(tensors_of(directory.global_payload(1))).tensors
        results.add(encode_payload(Subnet(tensors), run="run", round=2))
    assert len(results) > 1


def test_an_update_that_is_damaged_after_it_was_accepted_is_named_at_the_close(begin: Begin) -> None:
    directory = begin()
    directory.save(Checkpoint(Snapshot()))
    ledger = Ledger(directory, 1)
    path = directory.incoming(1) / "a"
    path.write_bytes(update(directory, "a", 1))
    ledger.take("a", 1, path, 0)
    accepted = directory.accepted(1)["a"]
    accepted.write_bytes(accepted.read_bytes()[:-4])
    with pytest.raises(StateError, match=r"a\.update"):
        ledger.close(1)
    assert not directory.global_payload(2).exists()


def test_a_damaged_accepted_update_is_named_at_the_restart(begin: Begin) -> None:
    directory = begin()
    directory.save(Checkpoint(Snapshot()))
    ledger = Ledger(directory, 1)
    path = directory.incoming(1) / "a"
    path.write_bytes(update(directory, "a", 1))
    ledger.take("a", 1, path, 0)
    accepted = directory.accepted(1)["a"]
    accepted.write_bytes(accepted.read_bytes()[:-4])
    with pytest.raises(StateError, match=r"a\.update"):
        Ledger(directory, 1).accepted(1)


def test_a_checkpoint_comes_back_as_it_was(begin: Begin) -> None:
    directory = begin()
    checkpoint = Checkpoint(
        Snapshot(
            phase=Phase.COLLECTING,
            closed=0,
            attempt=2,
            cohort=("a",),
            asked={"a": 3, "b": 3},
            known=("a", "b", "c"),
            answered={"c": 1},
        ),
        line={"event": "round", "round": 1},
        payloads=(Blob(digest="0" * 64, size=5, chunk=512),),
    )
    directory.save(checkpoint)
    assert RunDirectory(directory.path).load() == checkpoint
    assert directory.peek() == checkpoint


@pytest.mark.parametrize("content", [b"", b"{", b'{"engine": {"phase": "dancing"}}', b"[]"])
def test_a_checkpoint_that_is_none_is_named(begin: Begin, content: bytes) -> None:
    directory = begin()
    (directory.path / "state.json").write_bytes(content)
    with pytest.raises(StateError, match=r"state\.json"):
        directory.load()


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    assert not directory.exists
    with pytest.raises(StateError, match="holds no run"):
        directory.record()


def test_two_coordinators_in_one_folder(tmp_path: Path) -> None:
    with (
        RunDirectory(tmp_path).locked(),
        pytest.raises(StateError, match="in use"),
        RunDirectory(tmp_path).locked(),
    ):
        pass
    with RunDirectory(tmp_path).locked():
        pass


def test_starts_are_counted(tmp_path: Path) -> None:
    assert [RunDirectory(tmp_path).count_start() for _ in range(3)] == [1, 2, 3]


def test_reports_come_back(begin: Begin) -> None:
    directory = begin()
    report = Report(run="run", round=3, examples=4, metrics={"accuracy": 1.0})
    directory.add_report("b", report)
    directory.add_report("a", report)
    directory.add_report("a", report)
    assert directory.reports() == {"a": report, "b": report}
    assert list(directory.reports()) == ["a", "b"]


def test_a_definition_that_was_changed_is_refused(begin: Begin) -> None:
    directory = begin()
    text = directory.definition.read_text()
    assert '"layout": null' in text
    directory.definition.write_text(text.replace('"layout": null', f'"layout": "{"0" * 64}"', 1))
    directory.save(Checkpoint(Snapshot()))
    with pytest.raises(StateError, match="layout"):
        Ledger(directory, 1)


def test_settings_that_make_no_run_are_refused_by_name(tmp_path: Path) -> None:
    from coordinator.definition import define
    from shared.config import RunConfig

    with pytest.raises(ConfigError, match="did you mean"):
        define(RunConfig.model_validate({"algorithm": {"name": "fedavgg"}}))
