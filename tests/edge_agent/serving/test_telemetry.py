"""ONNX Runtime keeps to itself: no database in the user's cache, no thread that we did not ask for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LOAD = """
import json, os, sys
from pathlib import Path
{imports}
session = open_session(Path(sys.argv[1]).read_bytes())
threads = os.listdir("/proc/self/task")
print(json.dumps([len(threads), "torch" in sys.modules]))
"""
OURS = "from shared.onnx_runtime import open_session"
AGENT = "import edge_agent\nimport onnxruntime\nfrom edge_agent.inference import open_session"
BARE = """
import onnxruntime
def open_session(data):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
"""


def load(imports: str, template: bytes, home: Path) -> tuple[int, bool, list[Path]]:
    """(threads, torch imported, files below HOME) of a process that opens a session in a clean home."""
    home.mkdir()
    (home.parent / "model.onnx").write_bytes(template)
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LOAD.format(imports=imports), str(home.parent / "model.onnx")]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    threads, torch = json.loads(output)
    return threads, torch, [path for path in home.rglob("*") if path.is_file()]


@pytest.mark.parametrize("imports", [OURS, AGENT], ids=["shared", "agent"])
def test_no_database_no_thread_no_torch(imports: str, template: bytes, tmp_path: Path) -> None:
    assert load(imports, template, tmp_path / "home") == (1, False, [])


def test_it_is_the_variable_that_prevents_it(template: bytes, tmp_path: Path) -> None:
    """Without it, today's builds do both: if this fails, the runtime has changed and the precaution may go."""
    threads, _, files = load(BARE, template, tmp_path / "home")
    assert threads > 1
    assert any(path.name == "onnxruntime.db" for path in files)
