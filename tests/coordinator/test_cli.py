"""talaria-coordinator as it is typed: exit codes, JSON, and a help that comes at once."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner
from fleet import World, running

from coordinator.checkpoints import RunDirectory
from coordinator.cli import cli
from coordinator.narrator import line
from coordinator.preparation import DEFINED

Begin = Callable[..., RunDirectory]
HEAVY = ("torch", "numpy", "pydantic", "onnx", "rich", "paho")


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coordinator.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
async def finished(begin: Begin, tmp_path: Path) -> World:
    world = World(begin(count=2), tmp_path)
    async with running(world.device("a"), world.device("b")):
        await world.coordinator().run()
    return world


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom coordinator.cli import cli\n"
        "try:\n    cli(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "talaria-coordinator run -c" in done.stdout
    assert done.stdout.strip().endswith("[]")


@pytest.mark.parametrize("command", [["run"], ["status"], ["export"], ["config"], ["config", "show"]])
def test_every_command_explains_itself(command: list[str]) -> None:
    result = CliRunner().invoke(cli, [*command, "--help"])
    assert result.exit_code == 0
    assert len(result.output) > 150


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["config", "show", "--set", "rounds.cuont=3"], 2, "did you mean 'count'"),
        (["run", "--set", "rounds.quorum=5"], 2, "quorum 5"),
        (
            ["run", "--set", "algorithm.name=fedavgg", "--set", "broker.url=mqtt://localhost:1"],
            2,
            "did you mean 'fedavg'",
        ),
        (["run", "--set", "algorithm.epoch=3", "--set", "broker.url=mqtt://localhost:1"], 2, "epochs"),
        (["status", "/nowhere"], 1, "holds no run"),
        (["export", "/nowhere"], 1, "holds no run"),
        (["run", "--resume", "/nowhere"], 1, "holds no run"),
        (["run", "--resume", "/nowhere", "--run-dir", "x"], 2, "--run-dir away"),
    ],
)
def test_exit_codes(tmp_path: Path, arguments: list[str], status: int, said: str) -> None:
    if arguments[0] == "run" and "--resume" not in arguments:
        arguments = [*arguments, "--run-dir", str(tmp_path / "new")]
    done = call(*arguments)
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith("talaria-coordinator: ")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "new" / "run.json").exists()


def test_config_show_lists_values_with_their_origin() -> None:
    result = CliRunner().invoke(cli, ["config", "show", "--json", "--set", "rounds.count=7"])
    rows = {row["key"]: row for row in json.loads(result.output)}
    assert (rows["rounds.count"]["value"], rows["rounds.count"]["origin"]) == (7, "--set")
    assert rows["rounds.quorum"]["origin"] == "default"
    assert "algorithm.lr" in rows
    text = CliRunner().invoke(cli, ["config", "show", "--set", "rounds.count=7"]).output
    assert any(entry.split() == ["rounds.count", "7", "--set"] for entry in text.splitlines())


async def test_status_of_a_run_that_is_open_and_of_one_that_is_over(begin: Begin, finished: World) -> None:
    done = CliRunner().invoke(cli, ["status", str(finished.directory.path), "--json"])
    status = json.loads(done.output)
    assert (status["phase"], status["rounds"], status["reported"]) == ("finished", 2, ["a", "b"])
    assert [entry["event"] for entry in status["history"]] == ["round", "round", "personalized"]
    text = CliRunner().invoke(cli, ["status", str(finished.directory.path)]).output
    assert "finished, 2 of 2 rounds closed" in text
    fresh = CliRunner().invoke(cli, ["status", str(begin("fresh").path)])
    assert "gathering, 0 of 2 rounds closed" in fresh.output


async def test_export_writes_the_global_model(finished: World, tmp_path: Path) -> None:
    finished.directory.template.unlink()  # a stand-in: now the real one is made
    path = tmp_path / "model.onnx"
    done = CliRunner().invoke(cli, ["export", str(finished.directory.path), "-o", str(path), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output) == {"round": 2, "bytes": path.stat().st_size, "path": str(path)}
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert {"run": "run", "round": "2"}.items() <= {entry.key: entry.value for entry in model.metadata_props}.items()


async def test_a_finished_run_is_resumed_to_nothing_to_do(finished: World) -> None:
    done = call("run", "--resume", str(finished.directory.path), "--set", "broker.url=mqtt://localhost:1", "--json")
    assert done.returncode == 0, done.stderr
    assert [json.loads(entry)["event"] for entry in done.stdout.splitlines()] == ["started"]


def test_only_broker_and_transfer_may_change_when_a_run_goes_on(begin: Begin) -> None:
    done = call("run", "--resume", str(begin().path), "--set", "rounds.count=9")
    assert done.returncode == 2
    assert "broker, transfer and admission, and run.http" in done.stderr


def test_every_event_has_a_line_or_is_silent(finished: World) -> None:
    lines = [line(event) for event in finished.events]
    assert any("round 2 closed: 2 of 2 updates" in text for text in lines if text)
    assert lines[-1] is not None
    assert lines[-1].startswith("finished: 2 devices reported")
    assert line({"event": "something new"}) is None


def test_the_end_says_how_the_fleet_fares_and_who_is_missing() -> None:
    event = {"event": "finished", "reported": ["a", "b"], "failed": ["c"], "absent": ["d", "e"], "run_dir": "runs/1"}
    own = {"count": 2, "weighted_mean": 0.9, "mean": 0.8, "deviation": 0.1, "p10": 0.725}
    accuracy = {"accuracy": own | {"worst": 0.7, "worst_device": "b"}}
    assert line(event | {"evaluation": accuracy}) == (
        "finished: 2 devices reported, accuracy 90.0%, tenth percentile 72.5%, worst 70.0% (b); failed: c; "
        "never came back: d, e; everything is in runs/1"
    )
    everybody = event | {"failed": [], "absent": [], "evaluation": {}}
    assert line(everybody) == "finished: 2 devices reported; everything is in runs/1"


def test_the_preparation_in_a_child_says_what_it_does(begin: Begin) -> None:
    directory = begin()
    done = subprocess.run(
        [sys.executable, "-m", "coordinator.preparation", str(directory.path)],
        capture_output=True,
        timeout=120,
        check=True,
    )
    assert done.stdout == DEFINED
    directory.definition.unlink()
    directory.global_payload(1).unlink()
    subprocess.run([sys.executable, "-m", "coordinator.preparation", str(directory.path)], timeout=120, check=True)
    assert directory.definition.exists()
    assert directory.global_payload(1).exists()
