"""The operations guide knows every code that a device or an operator can meet, and every metric there is."""

import ast
import inspect
import re
from pathlib import Path

import shared.errors
from coordinator.events import Verdict
from coordinator.metrics import STATISTICS, Metrics
from coordinator.survey import DeviceView, State, Survey, VitalSigns
from edge_agent.health import Reading

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GUIDE = (DOCS / "operations.md").read_text(encoding="utf-8")
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


def page() -> str:
    """What /metrics says of a run in which everything has happened that an alert could be about."""
    signs = VitalSigns(0.0, "idle", 1.0, dict.fromkeys(Reading.__annotations__, 50.0))
    survey = Survey(
        "r", 0.0, True, True, "collecting", 1, 1, 0, 0, 0, (DeviceView("kitchen", State.READY, vitals=signs),)
    )
    metrics = Metrics(lambda: survey)
    metrics({"event": "rejected", "code": "not_finite"})
    metrics({"event": "failed", "code": "data"})
    spread = {"accuracy": dict.fromkeys(STATISTICS, 0.5)}
    metrics({"event": "closed", "wall_s": 1.0, "evaluation": spread})
    return metrics.page().decode()


def test_every_metric_has_its_line() -> None:
    told = {line.split()[2] for line in page().splitlines() if line.startswith("# TYPE talaria_")}
    assert told
    missing = {name for name in told if name not in GUIDE and not name.endswith("_created")}
    assert missing == set()
    named = set(re.findall(r"talaria_[a-z_]+", GUIDE))
    known = told | {f"{name}_bucket" for name in told}
    assert named <= known, named - known


def test_every_alert_is_about_something_that_is_told() -> None:
    """An alert on a name or a label that is not there never fires, and Prometheus does not say so."""
    rules = (DOCS / "prometheus-rules.yml").read_text(encoding="utf-8")
    samples = [line for line in page().splitlines() if not line.startswith("#")]
    selectors = set(re.findall(r"(talaria_\w+)(?:\{([^}]*)\})?", rules))
    assert len(selectors) >= 10
    for name, labels in selectors:
        told = [sample for sample in samples if re.match(rf"{name}[{{ ]", sample)]
        for label, operator, value in re.findall(r"(\w+)(=|!=|!~)(\"[^\"]*\")", labels):
            wanted = f"{label}={value}" if operator == "=" else f"{label}="
            told = [sample for sample in told if wanted in sample]
        assert told, f"{name}{{{labels}}}"
    alerts = re.findall(r"alert: (\w+)", rules)
    assert alerts
    assert [alert for alert in alerts if f"| `{alert}` |" not in GUIDE] == []
