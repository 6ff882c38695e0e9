"""The three commands as people and scripts start them: help, exit codes, errors that name the remedy."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from processes import System, command

PROGRAMS = {"talaria-coordinator": "coordinator.cli", "talaria-agent": "edge_agent.cli", "talaria-lab": "lab.cli"}
SMALL = (
    *("--set", "rounds.count=1", "--set", "fleet.devices=2", "--set", "rounds.min_devices=2"),
    *("--set", "rounds.quorum=2", "--set", "algorithm.epochs=1", "--set", "algorithm.finetune_epochs=0"),
)


def call(*arguments: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=150, cwd=cwd)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_is_quick_and_says_how_it_ends(program: str) -> None:
    call(command(program), "--help")  # the first one compiles
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        shown = call(command(program), "--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.3, "CPU seconds, for the wall clock also measures whatever else runs here"
    assert shown.returncode == 0
    assert "Exit status" in shown.stdout


@pytest.mark.parametrize("module", PROGRAMS.values())
def test_help_needs_neither_torch_nor_numpy(module: str) -> None:
    script = (
        f"import sys; from {module} import cli\n"
        "cli(['--help'], standalone_mode=False); print(sorted({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    shown = call(sys.executable, "-c", script)
    assert shown.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("program", "arguments", "status", "named"),
    [
        ("talaria-coordinator", ("run", "--set", "rounds.cuont=5"), 2, "did you mean 'count'"),
        ("talaria-coordinator", ("run", "--set", "rounds.quorum=3"), 2, "min_devices"),
        ("talaria-coordinator", ("run", "-c", "absent.toml"), 2, "absent.toml"),
        ("talaria-coordinator", ("status", "absent"), 1, "absent"),
        ("talaria-agent", ("run", "--set", "devise=kitchen"), 2, "device"),
        ("talaria-lab", ("simulate", "--set", "fleet.profiles=['rpi-6']"), 2, "rpi-5"),
        ("talaria-lab", ("demo", "--set", "fleet.device=3"), 2, "did you mean 'devices'"),
    ],
)
def test_a_wrong_setting_is_named_without_a_traceback(
    tmp_path: Path, program: str, arguments: tuple[str, ...], status: int, named: str
) -> None:
    done = call(command(program), *arguments, cwd=tmp_path)
    assert (done.returncode, named in done.stderr, "Traceback" in done.stderr) == (status, True, False), done.stderr
    assert not list(tmp_path.iterdir()), "and nothing was begun"


def test_without_any_broker_program_the_embedded_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALARIA_MOSQUITTO", str(tmp_path / "absent"))
    script = "import sys; sys.modules['amqtt'] = None; from coordinator.cli import main; main()"
    done = call(sys.executable, "-c", script, "run", "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 3, done.stderr
    assert "apt-get install mosquitto" in done.stderr


def test_a_broker_that_refuses_our_credentials_ends_the_command_with_3(system: System, tmp_path: Path) -> None:
    (tmp_path / "passwords").write_text("")
    broker = system.start_broker("allow_anonymous false", f"password_file {tmp_path / 'passwords'}")
    for program, device in (("talaria-coordinator", ()), ("talaria-agent", ("--set", "device=phone"))):
        where = ("--run-dir", str(tmp_path / "run")) if not device else ("--set", f"state_dir={tmp_path / 'state'}")
        done = call(command(program), "run", "--set", f"broker.url={broker.url}", *device, *where)
        assert done.returncode == 3, done.stderr
        assert "broker.username" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("how", [("simulate", "--export"), ("demo",)])
async def test_a_small_fleet_on_this_machine_ends_with_a_report(system: System, how: tuple[str, ...]) -> None:
    folder = system.folder / "run"
    done = call(command("talaria-lab"), *how, *SMALL, "--run-dir", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    names = [event["event"] for event in events]
    assert names[0] == "started"
    assert [name for name in names if name in ("opened", "closed", "personalizing", "finished")] == [
        "opened",
        "closed",
        "personalizing",
        "finished",
    ]
    summary = events[-1]
    assert summary["event"] == "summary"
    assert len(summary["devices"]) == 2
    assert all(row["onnx_bytes"] > 0 and row["parity"] <= 1e-4 for row in summary["devices"])
    report = folder / "report.html"
    assert summary["report"] == str(report)
    text = report.read_text()
    assert "</html>" in text
    for row in summary["devices"]:
        assert row["device"] in text
        assert (folder / "devices" / row["device"] / "state/models/current/model.onnx").is_file()
    await system.gone()
