"""Algorithms side by side: which settings each gets, what is written of them, and the numbers that are shown."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lab.cli import cli
from lab.compare import Variant, compare, variants
from lab.pool import TrainerPool
from lab.results import Cost, Meter, Result
from lab.summary import summarize
from lab.tables import fleet_table
from lab.wording import MISSING
from shared.config import AlgorithmSettings, RunConfig
from shared.errors import ConfigError, TrainingError
from shared.evaluation import Spread
from shared.settings import bundled_config, load_run_config


def config(**algorithm: Any) -> RunConfig:
    return RunConfig.model_validate({"algorithm": {"name": "hermes", **algorithm}})


def test_each_algorithm_gets_the_settings_that_it_knows() -> None:
    plain, pruned = variants(config(lr=0.3, pruning_amount=0.5), ["fedavg", "hermes"])
    assert (plain.algorithm.name, plain.algorithm.hyperparameters) == ("fedavg", {"lr": 0.3})
    assert pruned.algorithm.hyperparameters == {"lr": 0.3, "pruning_amount": 0.5}


def test_a_setting_that_none_of_them_knows_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"no algorithm here takes algorithm\.prune"):
        variants(config(lr=0.3, prune=0.5), ["fedavg", "fedper"])


def test_a_setting_that_an_algorithm_refuses_is_left_out_for_it_unless_nobody_could_mean_it() -> None:
    plain, meta = variants(config(lr=0.3, momentum=0.9), ["fedavg", "per-fedavg"])
    assert plain.algorithm.hyperparameters == {"lr": 0.3, "momentum": 0.9}
    assert meta.algorithm.hyperparameters == {"lr": 0.3}
    with pytest.raises(ConfigError, match=r"momentum = 1\.5"):
        variants(config(momentum=1.5), ["fedavg", "per-fedavg"])


def test_what_diverges_has_no_result_and_the_others_go_on(tmp_path: Path) -> None:
    """With a learning rate of 1e30 the loss is not finite after a step."""
    wild = Variant("wild", AlgorithmSettings.model_validate({"name": "fedavg", "lr": 1e30}))
    tame = Variant("tame", AlgorithmSettings.model_validate({"name": "fedavg"}))
    settings = load_run_config(bundled_config("demo"), SMALL[1::2]).config
    told: list[tuple[str, str]] = []

    def note(variant: Variant, seed: int, event: Mapping[str, Any]) -> None:
        if event["event"] == "given up":
            told.append((variant.label, event["reason"]))

    results = asyncio.run(compare(settings, [wild, tame], [0], tmp_path / "both", note))
    assert [result.label for result in results] == ["tame"]
    assert [label for label, _ in told] == ["wild"]
    assert "lower lr" in told[0][1]
    with pytest.raises(TrainingError, match="lower lr"):
        asyncio.run(compare(settings, [wild], [0], tmp_path / "none"))


def evaluation(value: float) -> dict[str, Any]:
    return {"accuracy": asdict(Spread(2, value, value, 0.1, value - 0.1, value - 0.2, "b"))}


def result(label: str, seed: int, accuracy: float, costs: tuple[Cost, ...] = ()) -> Result:
    metrics = {
        "accuracy": accuracy,
        "parameters": 1.0,
        "parameters_dense": 2.0,
        "latency_ms_eager": 3.0,
        "bytes_up": 9.0,
    }
    journal = [
        {
            "event": "round",
            "round": number,
            "cohort": ["a"],
            "accepted": [{"device": "a", "kept": 1.0, "metrics": {}}],
            "evaluation": evaluation(0.1 * number),
            "bytes_up": 1_000_000,
            "bytes_down": 2_000_000,
            "wall_s": 1.0,
        }
        for number in (1, 2)
    ]
    reports = [{"device": "a", "examples": 5, "metrics": metrics}]
    journal.append({"event": "personalized", "evaluation": evaluation(accuracy), "devices": reports})
    return Result(label, seed, Path("run"), summarize(journal), costs)


def test_the_results_of_a_run() -> None:
    first, second, device, final = result("fedper", 3, 0.8).lines()
    key = {"label": "fedper", "seed": 3}
    assert first == {"kind": "round", **key, "round": 1, "updates": 1, **evaluation(0.1)} | {
        "bytes_up": 1_000_000, "bytes_down": 2_000_000
    }  # fmt: skip
    assert second["round"] == 2
    assert device == {"kind": "device", **key, "device": "a", "examples": 5, "rounds": 2} | {
        "metrics": {"accuracy": 0.8, "parameters": 1.0, "parameters_dense": 2.0}  # what is measured would not repeat
    }
    assert final == {"kind": "final", **key, "rounds": 2, **evaluation(0.8), "parameters": 0.5} | {
        "bytes_up": 2_000_000, "bytes_down": 4_000_000
    }  # fmt: skip


def test_the_table_has_means_and_deviations_over_seeds() -> None:
    costs = (Cost(0, 9.0, 9.0, 9.0), Cost(1, 2.0, 1.0, 0.5), Cost(2, 2.0, 2.0, 0.5), Cost(3, 7.0, 7.0, 7.0))
    table = fleet_table([result("fedper", 0, 0.8, costs), result("fedper", 1, 0.9, costs), result("fedavg", 0, 0.7)])
    fedper, fedavg = (dict(zip(table.header, row, strict=True)) for row in table.rows)
    assert (fedper["accuracy"], fedavg["accuracy"]) == ("85.0±5.0", "70.0")
    assert (fedper["std"], fedper["worst"], fedper["global"]) == ("10.0", "65.0", MISSING)
    assert (fedavg["params"], fedavg["up MB"], fedavg["down MB"]) == ("50.0", "2.00", "4.00")
    assert fedper["CPU s/round"] == "2.00"  # of the rounds: (1.5 + 2.5) / 2
    assert fedper["wall s"] == "20.0"  # of everything


def test_costs_are_taken_from_event_to_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = TrainerPool({})
    now = {"monotonic": 100.0, "process_time": 10.0}
    for name in now:
        monkeypatch.setattr(f"lab.results.time.{name}", lambda name=name: now[name])
    meter = Meter(tmp_path / "costs.jsonl", "fedper", 3, pool)

    def tell(event: Mapping[str, Any], wall: float, system: float, training: float) -> None:
        now["monotonic"] += wall
        now["process_time"] += system
        pool.cpu_s += training
        meter(event)

    tell({"event": "opened", "round": 1, "attempt": 1}, 1.0, 0.5, 0.0)
    tell({"event": "opened", "round": 1, "attempt": 2}, 1.0, 0.5, 1.0)
    tell({"event": "closed", "round": 1}, 2.0, 0.5, 3.0)
    tell({"event": "personalizing", "round": 2}, 0.25, 0.0, 0.0)
    tell({"event": "finished"}, 0.5, 0.5, 1.0)
    lines = [json.loads(line) for line in (tmp_path / "costs.jsonl").read_text().splitlines()]
    assert lines == [
        {"label": "fedper", "seed": 3, "round": 0, "wall_s": 1.0, "training_cpu_s": 0.0, "system_cpu_s": 0.5},
        {"label": "fedper", "seed": 3, "round": 1, "wall_s": 3.0, "training_cpu_s": 4.0, "system_cpu_s": 1.0},
        {"label": "fedper", "seed": 3, "round": 2, "wall_s": 0.75, "training_cpu_s": 1.0, "system_cpu_s": 0.5},
    ]


SMALL = (
    *(
        "--set",
        "fleet.devices=2",
        "--set",
        "rounds.count=1",
        "--set",
        "rounds.min_devices=2",
        "--set",
        "rounds.quorum=2",
    ),
    *("--set", "data.max_per_class=2", "--set", "algorithm.epochs=1"),
)


def test_several_algorithms_and_seeds_with_one_command(tmp_path: Path) -> None:
    where = ("--run-dir", str(tmp_path / "runs"))
    command = ["simulate", *SMALL, "--algorithms", "fedper,fedavg", "--seeds", "0,1", *where]
    first = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert first.exit_code == 0, first.output
    assert "4/4 fedavg, seed 1" in first.output
    results = (tmp_path / "runs" / "results.jsonl").read_bytes()
    finals = [line for line in map(json.loads, results.splitlines()) if line["kind"] == "final"]
    order = [("fedper", 0), ("fedper", 1), ("fedavg", 0), ("fedavg", 1)]
    assert [(line["label"], line["seed"]) for line in finals] == order
    assert finals[0]["accuracy"] != finals[1]["accuracy"]
    assert "<svg" in (tmp_path / "runs" / "comparison.svg").read_text()
    assert "fedper" in (tmp_path / "runs" / "comparison.html").read_text()
    again = CliRunner().invoke(cli, [*command, "--json"], catch_exceptions=False)
    *events, summary = map(json.loads, again.output.splitlines())
    assert {event["event"] for event in events} == {"started"}, "what is finished is not done again"
    assert (tmp_path / "runs" / "results.jsonl").read_bytes() == results
    assert [entry["label"] for entry in summary["results"]] == ["fedper", "fedper", "fedavg", "fedavg"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--algorithms", "fedaft"], "unknown algorithm 'fedaft'"),
        (["--algorithms", "fedavg", "--set", "algorithm.lr=-1"], "lr = -1"),
        (["--seeds", "0,x"], "--seeds '0,x' are not whole numbers"),
        (["--seeds", "0", "--export"], "--export is for one simulation"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_runs(tmp_path: Path, arguments: list[str], says: str) -> None:
    command = ["simulate", "--run-dir", str(tmp_path / "runs"), *SMALL, *arguments]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code != 0
    assert says in done.output + str(done.exception)
    assert not (tmp_path / "runs").exists()
