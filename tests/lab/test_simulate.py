"""Simulations: the same settings give the same bytes, and what dies or cannot train is survived or told."""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from coordinator.audit import audit_run
from coordinator.checkpoints import RunDirectory
from edge_agent.job import MEMORY, PERSONAL, Job, Outcome
from lab import pool as pool_module
from lab.compare import Variant, compare
from lab.fleet import emulated_devices
from lab.pool import TrainerPool
from lab.simulate import simulate
from shared.codec import open_payload
from shared.config import RunConfig
from shared.errors import ConfigError, TalariaError, TrainingError
from shared.toml import bundled

DEVICES = 5


def config(algorithm: str = "fedper", **changes: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "model": {"name": "digitscnn", "options": {"width": 8}},
        "algorithm": {"name": algorithm, "epochs": 1},
        "rounds": {"count": 2, "cohort": 3},
        "data": {"max_per_class": 4, "partition": {"kind": "dirichlet", "min_examples": 20}},
        "fleet": {"devices": DEVICES},
    }
    return RunConfig.model_validate({**settings, **changes})


def run(directory: Path, *configs: RunConfig, size: int = 2) -> tuple[list[list[dict[str, Any]]], TrainerPool]:
    """Events of one simulation after the other, in `directory`/0, 1, ..., all with the same trainers."""
    data = {device: agent.data for device, agent in emulated_devices(configs[0], directory).items()}
    trainers = TrainerPool(data, size)
    told: list[list[dict[str, Any]]] = [[] for _ in configs]

    async def all_of_them() -> None:
        async with trainers:
            for number, (each, events) in enumerate(zip(configs, told, strict=True)):
                await simulate(each, directory / str(number), trainers, partial(note, events))

    asyncio.run(all_of_them())
    return told, trainers


def note(events: list[dict[str, Any]], event: Mapping[str, Any]) -> None:
    events.append(dict(event))


def tensors(path: Path) -> dict[str, bytes]:
    with open_payload(path, limit=path.stat().st_size) as payload:
        return {name: array.tobytes() for name, array in payload.subnet.tensors.items()}


def kept(directory: Path) -> dict[str, Any]:
    """Everything that a run leaves and that must not depend on time."""
    own = sorted(directory.glob(f"devices/*/state/generations/*/{MEMORY}"))
    own += sorted(directory.glob(f"devices/*/state/generations/*/{PERSONAL}"))
    assert len(own) == 2 * DEVICES
    return {str(path.relative_to(directory)): tensors(path) for path in own} | {
        path.name: path.read_bytes() for path in sorted((directory / "globals").iterdir())
    }


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    variant = Variant("fedper", config().algorithm)
    asyncio.run(compare(config(), [variant], [0], tmp_path / "one"))
    asyncio.run(compare(config(), [variant], [1, 0], tmp_path / "two"))
    one, two = (tmp_path / again / "fedper" / "seed-0" for again in ("one", "two"))
    assert kept(one) == kept(two)
    assert (one / "results.jsonl").read_bytes() == (two / "results.jsonl").read_bytes()
    other = kept(tmp_path / "two" / "fedper" / "seed-1")
    assert other["00003.payload"] != kept(one)["00003.payload"]


def test_the_first_cohort_is_drawn_from_all_devices(tmp_path: Path) -> None:
    """Whoever comes first: with min_devices as it was, the first two would be asked at once."""
    events, _ = run(tmp_path, config(), config())
    first, second = ([e["cohort"] for e in each if e["event"] == "opened"] for each in events)
    assert [len(cohort) for cohort in first] == [3, 3]
    assert first == second
    (finished,) = [event for event in events[0] if event["event"] == "finished"]
    assert len(finished["reported"]) == DEVICES


async def test_nobody_runs_short_of_time_however_many_devices_there_are(tmp_path: Path) -> None:
    """The fleet's deadline is that of all devices one after the other, a device's own is its part of it."""
    jobs: list[Job] = []

    async def spy(job: Job) -> Outcome:
        jobs.append(job)
        return Outcome(code="crashed", reason="that is enough")

    with pytest.raises(TrainingError, match="enough"):
        await simulate(config(), tmp_path, spy, lambda event: None)
    assert {(job.deadline_s, job.reserve_s) for job in jobs} == {(config().rounds.deadline_s, 0.0)}


def plug_in(folder: Path, monkeypatch: pytest.MonkeyPatch, train: str, personalize: str = "pass") -> None:
    """Module `odd` with an algorithm ODD: FedAvg, before whose functions that code runs."""
    (folder / "odd.py").write_text(
        "import os, time\nfrom dataclasses import replace\nfrom pathlib import Path\n"
        "from shared.algorithms.fedavg import FEDAVG\n"
        f"def train(round_, hp):\n    {train}\n    FEDAVG.train(round_, hp)\n"
        f"def personalize(round_, hp):\n    {personalize}\n    return FEDAVG.personalize(round_, hp)\n"
        "ODD = replace(FEDAVG, name='odd', train=train, personalize=personalize)\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.delitem(sys.modules, "odd", raising=False)


ALL = {"count": 1, "quorum": DEVICES, "min_devices": DEVICES}


def test_a_trainer_that_dies_fails_its_job_and_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once = tmp_path / "died"
    plug_in(tmp_path, monkeypatch, f"Path({str(once)!r}).exists() or (Path({str(once)!r}).touch(), os._exit(9))")
    (events,), pool = run(tmp_path, config("odd:ODD", rounds=ALL), size=1)
    failed = [event for event in events if event["event"] == "failed"]
    assert [event["code"] for event in failed] == ["crashed"]
    (finished,) = [event for event in events if event["event"] == "finished"]
    assert len(finished["reported"]) == DEVICES  # all of them by the one trainer that came in its place
    assert pool.cpu_s > 0


def test_a_device_has_the_deadline_for_its_own_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "GRACE_S", 0.2)
    plug_in(tmp_path, monkeypatch, "time.sleep(600)")
    rounds = {**ALL, "quorum": 1, "deadline_s": 0.3}
    with pytest.raises(TrainingError, match=r"round 1 was given up.*container-0.*did not stop at its deadline"):
        run(tmp_path, config("odd:ODD", rounds=rounds))


def test_what_fails_on_every_device_ends_the_run_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(tmp_path, monkeypatch, "raise ValueError('it is odd')")
    with pytest.raises(TrainingError, match=r"round 1 was given up.*container-0\d: ValueError: it is odd"):
        run(tmp_path, config("odd:ODD"))


def fleet_of_two_kinds(tmp_path: Path, quorum: int) -> list[dict[str, Any]]:
    """Events of a simulation in which only three of five devices train, and whatever they do fails."""
    profile = bundled("firmware_profiles", "container").read_text().replace("[training]", "[training]\nenabled = false")
    (tmp_path / "display.toml").write_text(profile.replace('id = "container"', 'id = "display"'))
    fleet = {"devices": DEVICES, "profiles": ["container", str(tmp_path / "display.toml")]}
    events: list[dict[str, Any]] = []

    async def fail(job: Job) -> Outcome:
        return Outcome(code="crashed", reason="as planned")

    rounds = {"count": 1, "quorum": quorum, "min_devices": quorum}
    simulation = simulate(config(fleet=fleet, rounds=rounds), tmp_path / "run", fail, partial(note, events))
    with pytest.raises(TrainingError, match="as planned"):
        asyncio.run(simulation)
    return events


def test_devices_that_do_not_train_are_not_waited_for(tmp_path: Path) -> None:
    opened = [event["cohort"] for event in fleet_of_two_kinds(tmp_path, quorum=3) if event["event"] == "opened"]
    assert opened == [["container-00", "container-02", "container-04"]] * 2


def test_a_fleet_too_few_of_which_train_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"3 of the 5 devices can train this model, and rounds\.quorum is 4"):
        fleet_of_two_kinds(tmp_path, quorum=4)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"data": {"source": "digitz"}}, ConfigError),
        ({"data": {"source": "npz", "path": "nowhere.npz", "options": {}}}, TalariaError),
    ],
)
def test_data_that_cannot_be_read_end_it_before_it_begins(
    tmp_path: Path, changes: dict[str, Any], wrong: type[TalariaError]
) -> None:
    with pytest.raises(wrong, match=r"digitz|nowhere\.npz"):
        run(tmp_path, config(**changes))


def reads(folder: Path, monkeypatch: pytest.MonkeyPatch, path: str | None) -> Sequence[str]:
    """What a source was asked to read for the whole fleet."""
    (folder / "counted.py").write_text(
        "from edge_agent.data.sources import digits\n"
        "def source(path):\n"
        f"    with open({str(folder / 'reads')!r}, 'a') as file:\n"
        "        print(path and path.name, file=file)\n"
        "    return digits(None)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))
    partition = {"kind": "iid"}
    run(folder, config(data={"source": "counted:source", "path": path, "partition": partition}, rounds={"count": 1}))
    return (folder / "reads").read_text().split()


def test_a_source_is_read_once_for_all_devices_and_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reads(tmp_path, monkeypatch, None) == ["None"]


def test_every_device_may_have_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(DEVICES):
        (tmp_path / f"client-{index}").touch()
    found = reads(tmp_path, monkeypatch, str(tmp_path / "client-{index}"))
    assert found == [f"client-{index}" for index in range(DEVICES)]


def test_a_run_ends_also_where_devices_fail_to_personalize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(tmp_path, monkeypatch, "pass", personalize="if round_.final and len(round_.train) % 2: 1 / 0")
    (events,), _ = run(tmp_path, config("odd:ODD", rounds=ALL, data={"partition": {"kind": "dirichlet"}}))
    (finished,) = [event for event in events if event["event"] == "finished"]
    assert finished["failed"]
    assert finished["reported"]
    assert len(finished["failed"] + finished["reported"]) == DEVICES


def test_buffered_rounds_run_to_the_end_and_can_be_audited(tmp_path: Path) -> None:
    buffered = config(
        "fedavg",
        rounds={"count": 4, "mode": "buffered", "quorum": 2, "enough": 2, "cohort": 3},
        run={"keep_updates": True},
    )
    ((*events,),), _ = run(tmp_path, buffered)
    closed = [event for event in events if event["event"] == "closed"]
    assert [event["round"] for event in closed] == [1, 2, 3, 4]
    entries = [(entry["device"], entry["start"]) for event in closed for entry in event["accepted"]]
    assert len(entries) == len(set(entries)) >= 8
    assert any(entry["staleness"] for event in closed for entry in event["accepted"])
    assert len(events[-1]["reported"]) == DEVICES
    found = audit_run(RunDirectory(tmp_path / "0"))
    assert (found.faults, found.rounds) == ([], 4)
