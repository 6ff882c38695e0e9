"""The operations guide knows every code that a device or an operator can meet, and every metric there is."""

import ast
import inspect
import re
from pathlib import Path

import shared.errors
from coordinator.events import Verdict
from coordinator.metrics import Metrics
from coordinator.survey import Survey

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
INNER = {"error", "wire"}
"""Codes of base classes that nothing is ever raised as."""


def codes() -> set[str]:
    """From the source: of the error classes, of verdicts, of refused updates, of outcomes of training."""
    found = {str(v) for v in Verdict if v not in (Verdict.WELCOME, Verdict.DUPLICATE)}
    for _, kind in inspect.getmembers(shared.errors, inspect.isclass):
        if isinstance(code := kind.__dict__.get("code"), str):
            found.add(code)
    for package in ("coordinator", "edge_agent"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    found |= _named(node)
    return found - INNER


def _named(call: ast.Call) -> set[str]:
    """Codes that are written where something is refused or failed."""
    name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
    given = [word.value for word in call.keywords if word.arg == "code" and name in ("Outcome", "Failure")]
    if name in ("RefusedUpdate", "_check_bound") and call.args:
        given.append(call.args[0])
    return {each.value for each in given if isinstance(each, ast.Constant) and isinstance(each.value, str)}


def test_the_search_finds_codes_of_every_kind() -> None:
    assert {"stale", "malformed_payload", "not_finite", "norm_too_large", "crashed", "unsigned", "too_large"} <= codes()


def test_every_code_has_its_line() -> None:
    table = GUIDE[GUIDE.index("## What one meets") :]
    explained = {
        word
        for line in table.splitlines()
        for word in re.findall(r"`([^`]+)`", line.split("|")[1] if "|" in line else "")
    }
    words = {word for each in explained for word in re.findall(r"[a-z_]+", each)}
    assert codes() - words == set()


def test_every_metric_has_its_line() -> None:
    survey = Survey("r", 0.0, True, True, "gathering", 1, 0, 0, 0, 0, ())
    page = Metrics(lambda: survey).page().decode()
    told = {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE talaria_")}
    assert told
    missing = {name for name in told if name not in GUIDE and not name.endswith("_created")}
    assert missing == set()
    named = set(re.findall(r"talaria_[a-z_]+", GUIDE))
    known = told | {f"{name}_total" for name in told} | {f"{name}_bucket" for name in told}
    assert named <= known, named - known
