"""Puts a freshly personalized model in service, in a process of its own: onnx takes memory that the agent has no other
use for, and what it may die of stays there.
"""

import json
from pathlib import Path

from edge_agent.child import answer, ask
from edge_agent.job import PERSONAL, REFERENCE, Job, Outcome
from shared.profiles import Profile


def install(job: Job, outcome: Outcome, template: Path, models: Path) -> dict[str, float]:
    """Export the result of a personalization below `models`: the metrics of edge_agent.export.export_personal.

    ExportError if the model was refused: then the one in service stays in service. Takes seconds.
    """
    plan = job.task.plan
    card = {
        "run": job.task.run,
        "round": job.task.round,
        "layout": plan.layout or "",
        "model": plan.model,
        "model_options": plan.model_options,
        "labels": outcome.labels,
        "mean": outcome.mean,
        "std": outcome.std,
    }
    metrics: dict[str, float] = ask(
        "edge_agent.install", str(template), str(job.out), str(models), job.profile.model_dump_json(), json.dumps(card)
    )
    return metrics


def _install(template: str, results: str, models: str, profile: str, card: str) -> dict[str, float]:
    from edge_agent.export import export_personal
    from shared.onnx_file import ModelCard

    return export_personal(
        Path(template),
        Path(results) / PERSONAL,
        Path(results) / REFERENCE,
        Path(models),
        Profile.model_validate_json(profile),
        ModelCard.model_validate_json(card).properties(),
    )


if __name__ == "__main__":
    answer(_install)
