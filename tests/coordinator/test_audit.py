"""The audit: an honest run comes out again bit for bit, and whatever is changed afterwards is found and named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fleet import World, adding, running, tensors_of

from coordinator.audit import audit_run
from coordinator.checkpoints import RunDirectory, RunRecord
from coordinator.cli import cli
from coordinator.journal import read_journal
from shared.codec import encode_payload, open_payload
from shared.config import RunConfig
from shared.tensors import Subnet

Begin = Callable[..., RunDirectory]
CHANGES = {"a": (1.0, 10), "b": (2.0, 20), "c": (6.0, 70)}
ROUNDS = 3


def keeping(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"run": config.run.model_copy(update={"keep_updates": True})})


@pytest.fixture
async def honest(begin: Begin, tmp_path: Path) -> RunDirectory:
    """A finished run of three rounds, three devices each."""
    directory = begin(count=ROUNDS, quorum=3, min_devices=3)
    directory.create(RunRecord(directory.record().run, keeping(directory.record().config)))
    world = World(directory, tmp_path)
    devices = [
        world.device(name, adding(value, examples), capabilities=capable(examples))
        for name, (value, examples) in CHANGES.items()
    ]
    async with running(*devices):
        await world.coordinator().run()
    return directory


def capable(examples: int) -> Any:
    from shared.messages import Capabilities

    return Capabilities(profile="container", train=True, examples=examples)


def edit(directory: RunDirectory, number: int, change: Callable[[dict[str, Any]], None]) -> None:
    """Change round `number`'s line of the journal."""
    lines = list(read_journal(directory.journal_path))
    change(lines[number - 1])
    directory.journal_path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_an_honest_run_comes_out_again(honest: RunDirectory) -> None:
    found = audit_run(honest)
    assert (found.faults, found.unkept) == ([], [])
    assert (found.rounds, found.updates) == (ROUNDS, ROUNDS * len(CHANGES))


def test_the_mean_is_what_anybody_would_compute(honest: RunDirectory) -> None:
    """Without our own aggregation: numpy in float64 over the kept files."""
    for number in range(1, ROUNDS + 1):
        updates = sorted(honest.kept(number).glob("*.update"))
        assert [path.stem for path in updates] == sorted(CHANGES)
        weights = []
        for path in updates:
            with open_payload(path, limit=2**30) as payload:
                weights.append(payload.header.weight)
        assert weights == [float(examples) for _, examples in CHANGES.values()]
        values = [tensors_of(path) for path in updates]
        after = honest.kept(number + 1) / "start.payload"
        result = tensors_of(after if after.exists() else honest.global_payload(number + 1))
        for name, array in result.items():
            if array.dtype.kind == "f":
                wanted = np.average([each[name].astype(np.float64) for each in values], axis=0, weights=weights)
                np.testing.assert_allclose(array, wanted, rtol=1e-6, atol=1e-6)


def rewrite(path: Path, **changes: Any) -> None:
    """An update with other numbers, correctly encoded."""
    with open_payload(path, limit=2**30) as payload:
        header = payload.header
        fields = {"examples": header.examples, "weight": header.weight, "metrics": header.metrics} | changes
        tensors = {
            name: array + np.asarray(changes.get("add", 0), array.dtype)
            for name, array in payload.subnet.tensors.items()
        }
    fields.pop("add", None)
    path.write_bytes(encode_payload(Subnet(tensors), run=header.run, round=header.round, **fields))


def one_bit(path: Path) -> None:
    """One bit of the last value, large enough to show in the mean."""
    content = bytearray(path.read_bytes())
    content[-2] ^= 0x10
    path.write_bytes(bytes(content))


def start_of_two(directory: RunDirectory) -> Path:
    return directory.kept(2) / "start.payload"


ACCIDENTS: dict[str, tuple[Callable[[RunDirectory], object], str]] = {
    "one bit of one value of one update": (lambda d: one_bit(d.kept(2) / "b.update"), "computed again"),
    "another value in one update": (lambda d: rewrite(d.kept(2) / "b.update", add=1), "computed again"),
    "another weight": (lambda d: rewrite(d.kept(2) / "b.update", weight=21.0), "weight of"),
    "a lost update": (lambda d: (d.kept(2) / "b.update").unlink(), "update of b, which the journal counts, is missing"),
    "an update too many": (
        lambda d: (d.kept(2) / "z.update").write_bytes((d.kept(2) / "a.update").read_bytes()),
        "z.update is kept, but the journal does not count it",
    ),
    "an update of another round": (lambda d: (d.kept(3) / "a.update").replace(d.kept(2) / "a.update"), "round of"),
    "a torn update": (lambda d: (d.kept(2) / "a.update").write_bytes(b"TLR1"), "is damaged"),
    "a start that is not the end before": (lambda d: one_bit(start_of_two(d)), "round 2 started from"),
    "a lost start": (
        lambda d: start_of_two(d).unlink(),
        "round 2: the global tensors that it started from are missing",
    ),
    "a device counted twice": (
        lambda d: edit(d, 2, lambda line: line["accepted"].append(line["accepted"][0])),
        "the journal counts a more than once",
    ),
    "a digest that was made up": (
        lambda d: edit(d, 3, lambda line: line.update(digest="0" * 64)),
        "round 3 ended with 0000",
    ),
    "a round that is missing": (lambda d: edit(d, 2, lambda line: line.update(round=7)), "which are not 1, 2, 3"),
}


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_what_is_changed_is_found(honest: RunDirectory, accident: str) -> None:
    change, complaint = ACCIDENTS[accident]
    change(honest)
    assert any(complaint in fault for fault in audit_run(honest).faults), audit_run(honest).faults


async def test_without_keeping_nothing_is_claimed(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(count=1), tmp_path)
    async with running(world.device("a", adding(1)), world.device("b", adding(2))):
        await world.coordinator().run()
    assert not (world.directory.path / "kept").exists()
    result = CliRunner().invoke(cli, ["audit", str(world.directory.path)])
    assert result.exit_code == 1
    assert "keep_updates=true" in result.output


def test_the_command_exits_with_what_it_found(honest: RunDirectory) -> None:
    good = CliRunner().invoke(cli, ["audit", str(honest.path), "--json"])
    assert (good.exit_code, json.loads(good.output)["rounds"]) == (0, ROUNDS)
    one_bit(honest.kept(1) / "c.update")
    bad = CliRunner().invoke(cli, ["audit", str(honest.path)])
    assert bad.exit_code == 1
    assert "round 1 ended with" in bad.output
