"""Logs: whatever a device says stays on its line; JSON lines are whole; files are bounded."""

import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from shared import logs
from shared.errors import ConfigError, StateError
from shared.logs import logged, printable

HOSTILE = "82 C\n2026-01-01T00:00:00.000Z INFO    coordinator: device b: ready\r\x1b[2J\u202e\u2028\x85"


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)


def written(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_nothing_that_ends_a_line_or_paints_is_left() -> None:
    clean = printable(HOSTILE)
    assert clean.isprintable()
    assert len(clean.splitlines()) == 1
    assert clean.startswith(r"82 C\n2026")
    assert printable("Zürich 🌍 ok") == "Zürich 🌍 ok"


def test_text_cannot_forge_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with logged("text", path):
        logging.getLogger("coordinator").warning("a: %s", HOSTILE)
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            logging.getLogger("coordinator").exception("broke")
    lines = written(path)
    assert len([line for line in lines if line.startswith("20")]) == 2
    assert all(line.startswith("    ") for line in lines[2:])
    assert not any("\x1b" in line or "\u202e" in line for line in lines)


def test_json_lines_say_what_is_known(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "agent.json"
    with logged("json", path, device="kitchen"):
        extra = {"run": "r", "round": 3, "event": {"event": "closed", "folder": Path("x")}}
        logging.getLogger("a.b").info("%s", HOSTILE, extra=extra)
        warnings.warn("old\nthing", stacklevel=1)
        try:
            raise ValueError("no")
        except ValueError:
            logging.getLogger("a").exception("broke")
    first, second, third = map(json.loads, written(path))
    assert abs(datetime.fromisoformat(first["ts"]) - datetime.now(UTC)) < timedelta(minutes=1)
    assert (first["level"], first["logger"], first["message"]) == ("info", "a.b", HOSTILE)
    assert (first["device"], first["run"], first["round"]) == ("kitchen", "r", 3)
    assert first["event"] == {"event": "closed", "folder": "x"}
    assert (second["logger"], second["level"]) == ("py.warnings", "warning")
    assert third["exception"].endswith("ValueError: no")


@pytest.mark.parametrize(("error", "traced"), [(StateError("the disk lost it"), False), (RuntimeError("a bug"), True)])
def test_what_ends_the_program_is_in_its_log(tmp_path: Path, error: Exception, traced: bool) -> None:
    with pytest.raises(type(error)), logged("json", tmp_path / "log"):
        raise error
    (line,) = map(json.loads, written(tmp_path / "log"))
    assert (line["level"], line["message"], "exception" in line) == ("critical", str(error), traced)


def test_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FILE_BYTES", 2000)
    with logged("text", tmp_path / "log"):
        for number in range(1000):
            logging.getLogger("a").info("line %d", number)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {"log", *(f"log.{number}" for number in range(1, logs.FILES_KEPT + 1))}
    assert max(sizes.values()) <= 2000
    assert written(tmp_path / "log")[-1].endswith("line 999")


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--log-file"), logged("text", tmp_path / "file" / "log"):
        pass


def test_without_a_file_it_goes_to_stderr() -> None:
    script = (
        "import logging\nfrom shared.logs import logged\n"
        "with logged('json', quiet=True):\n    log = logging.getLogger('a'); log.info('quiet'); log.warning('loud')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == ""
    assert [json.loads(line)["message"] for line in done.stderr.splitlines()] == ["loud"]
