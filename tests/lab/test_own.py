"""Algorithm, model and data source of a user's own, as docs/extending.md prints them: checked, and run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lab.cli import main
from shared.settings import load_agent_config, load_run_config

DOCUMENT = Path(__file__).parents[2] / "docs" / "extending.md"
LAB = str(Path(sys.executable).parent / "talaria-lab")


def blocks(language: str) -> dict[str, str]:
    """File name -> the block of code that the document prints after it."""
    found = re.findall(rf"`([\w.]+)`:\n\n```{language}\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    return dict(found)


def lab(folder: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """talaria-lab as a user starts it, in that folder; path: PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONPATH": path} if path else {}
    return subprocess.run(
        [LAB, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=150, check=False
    )


@pytest.fixture
def status(monkeypatch: pytest.MonkeyPatch) -> "Status":
    return Status(monkeypatch)


class Status:
    """The same within this process, which is quicker; gives the exit status."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def __call__(self, folder: Path, *arguments: str) -> object:
        with self._monkeypatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(sys, "path", sys.path[:])
            patch.setattr(sys, "argv", ["talaria-lab", *arguments])
            try:
                with pytest.raises(SystemExit) as ended:
                    main()
            finally:
                for file in folder.glob("*.py"):
                    sys.modules.pop(file.stem, None)
        return ended.value.code


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the document: its files, and measurements of three states, one louder than the other."""
    folder = tmp_path_factory.mktemp("plant")
    for name, code in {**blocks("python"), **blocks("toml")}.items():
        (folder / name).write_text(code)
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 400).astype(np.uint8)
    loudness = np.array([0.1, 1.0, 3.0])[labels][:, None, None]
    samples = loudness * generator.standard_normal((400, 3, 64))
    (folder / "measured").mkdir()
    samples.astype(np.float32).tofile(folder / "measured" / "samples.f32")
    labels.tofile(folder / "measured" / "labels.u8")
    return folder


def test_the_document_prints_a_run_and_what_it_needs(folder: Path) -> None:
    printed = {*blocks("python"), *blocks("toml")}
    assert printed == {"fedprox.py", "vibration_net.py", "vibration.py", "plant.toml"}


def test_the_run_learns(folder: Path, tmp_path: Path) -> None:
    done = lab(folder, "simulate", "-c", "plant.toml", "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    (final,) = [line for line in lines if line["kind"] == "final"]
    assert final["rounds"] == 5
    assert final["accuracy"]["weighted_mean"] > 0.8
    assert len([line for line in lines if line["kind"] == "device"]) == 4


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("algorithm.name=fedprox:FEDPROKS", "module 'fedprox' has no 'FEDPROKS'"),
        ("algorithm.pul=0.5", "did you mean 'pull'?"),
        ("model.options={ input_shape = [3, 64], depth = 2 }", "no option 'depth'"),
        ("data.options={ windows = 64 }", "did you mean 'window'?"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(
    folder: Path, tmp_path: Path, status: Status, capsys: pytest.CaptureFixture[str], given: str, says: str
) -> None:
    assert status(folder, "simulate", "-c", "plant.toml", "--run-dir", str(tmp_path / "run"), "--set", given) == 2
    assert says in capsys.readouterr().err


def test_the_documents_device_trusts_what_the_run_names(folder: Path, tmp_path: Path) -> None:
    *_, printed = re.findall(r"```toml\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    (tmp_path / "agent.toml").write_text(printed)
    device = load_agent_config(tmp_path / "agent.toml", ["device=press-4"]).config
    run = load_run_config(folder / "plant.toml").config
    assert set(device.trust) == {run.algorithm.name, run.model.name}
    assert device.data.source == run.data.source


# --- talaria-lab check ----------------------------------------------------------------------------------------------


def test_check_has_a_line_for_every_check(folder: Path, tmp_path: Path) -> None:
    """What is on PYTHONPATH is found from anywhere."""
    done = lab(tmp_path, "check", "fedprox:FEDPROX", "--set", "pull=0.5", path=str(folder))
    assert done.returncode == 0, done.stderr
    *lines, verdict = done.stdout.splitlines()
    assert {line.split()[0] for line in lines} == {"pass"}
    assert "stops at the deadline: `check_time` is called in training, and what it raises ends it." in done.stdout
    assert verdict == f"fedprox passes all {len(lines)} checks"


def test_check_tells_what_fails_and_why(tmp_path: Path, status: Status, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "timeless.py").write_text(
        "from shared.algorithms.base import Algorithm, local_sgd\n"
        "def train(round_, hp):\n"
        "    print('in training')\n"
        "    round_.check_time = lambda: None\n"
        "    local_sgd(round_.model, round_, hp, epochs=1)\n"
        "TIMELESS = Algorithm(name='timeless', paper='', train=train)\n"
    )
    assert status(tmp_path, "check", "timeless:TIMELESS", "--json") == 1
    said = capsys.readouterr()
    answer = json.loads(said.out)
    failed = {entry["check"]: entry["reason"] for entry in answer["checks"] if entry["reason"]}
    assert list(failed) == ["stops_at_the_deadline"]
    assert failed["stops_at_the_deadline"].startswith("training went on after the deadline")
    assert (answer["algorithm"], answer["passed"]) == ("timeless", False)
    assert "in training" in said.err


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{}['nothing']", "KeyError: 'nothing' (crashing.py, line 3)"),
        ("assert round_.number < 0", "AssertionError (crashing.py, line 3)"),
        ("round_.model(None)", "(crashing.py, line 3)"),
    ],
)
def test_check_reports_what_your_code_raises(
    tmp_path: Path, status: Status, capsys: pytest.CaptureFixture[str], line: str, reason: str
) -> None:
    (tmp_path / "crashing.py").write_text(
        "from shared.algorithms.base import Algorithm\n"
        f"def train(round_, hp):\n    {line}\n"
        "CRASHING = Algorithm(name='crashing', paper='', train=train)\n"
    )
    assert status(tmp_path, "check", "crashing:CRASHING") == 1
    said = capsys.readouterr()
    assert said.out.count(reason) == 9
    assert said.out.splitlines()[-1] == "crashing fails 9 of 9 checks"
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["fedper", "--set", "lrr=1"], "did you mean 'lr'?"),
        (["hermess"], "did you mean 'hermes'?"),
        (["shared.config:RunConfig"], "not an Algorithm"),
        (["raising:ALGORITHM"], "importing 'raising' raised ZeroDivisionError"),
        (["unwritten:ALGORITHM"], "importing 'unwritten' raised SyntaxError"),
    ],
)
def test_what_is_no_algorithm_ends_with_2(
    tmp_path: Path, status: Status, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    (tmp_path / "raising.py").write_text("1 / 0\n")
    (tmp_path / "unwritten.py").write_text("def\n")
    assert status(tmp_path, "check", *arguments) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert said.out == ""
