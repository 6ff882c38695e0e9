"""`talaria-lab check`: what every algorithm must do, asked of one of ours or of yours."""

import contextlib
import json
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch

import shared
from shared.algorithms import Algorithm, Hyperparameters, algorithm, hyperparameters
from shared.algorithms.conformance import CHECKS, Check
from shared.settings import load_run_config


@dataclass(frozen=True)
class Answer:
    """check: its name; asks: what it asks, in a sentence; reason: why it failed, None where it did not."""

    check: str
    asks: str
    reason: str | None


def check_one(name: str, sets: Sequence[str], *, as_json: bool) -> None:
    """Prints an answer per check; click's Exit 1 if the algorithm fails one, ConfigError if there is no such one."""
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr):  # what your code prints is no part of the answer
        chosen = algorithm(name)
        settings = load_run_config(None, [f"algorithm.{given}" for given in sets]).config.algorithm
        hp = hyperparameters(chosen, settings.hyperparameters)
        answers = [ask(entry, chosen, hp) for entry in CHECKS]
    failed = [answer for answer in answers if answer.reason is not None]
    if as_json:
        document = {"algorithm": chosen.name, "paper": chosen.paper, "hyperparameters": hp.model_dump(mode="json")}
        click.echo(json.dumps(document | {"passed": not failed, "checks": [asdict(answer) for answer in answers]}))
    else:
        for answer in answers:
            _show(answer)
        count = f"{len(failed)} of {len(answers)} checks" if failed else f"all {len(answers)} checks"
        click.echo(f"{chosen.name} {'fails' if failed else 'passes'} {count}")
    if failed:
        raise click.exceptions.Exit(1)


def ask(entry: Check, chosen: Algorithm, hp: Hyperparameters) -> Answer:
    """The check's answer; whatever your code raises is the reason of a failure."""
    asks = " ".join((entry.__doc__ or "").split()).partition(". ")[0].rstrip(".") + "."
    try:
        entry(chosen, hp)
    except Exception as error:
        return Answer(entry.__name__, asks, _reason(error))
    return Answer(entry.__name__, asks, None)


def _reason(error: Exception) -> str:
    """What was raised; unless the check itself did, with its type and the last line of your code on its way."""
    ours = Path(shared.__file__).parent
    files = [(Path(step.filename), step.lineno) for step in traceback.extract_tb(error.__traceback__)[1:]]
    yours = [(file, line) for file, line in files if ours not in file.parents and "site-packages" not in file.parts]
    if isinstance(error, AssertionError) and not yours:
        return str(error)
    where = f" ({yours[-1][0].name}, line {yours[-1][1]})" if yours else ""
    return ": ".join(filter(None, (type(error).__name__, str(error)))) + where


def _show(answer: Answer) -> None:
    word = click.style("pass", fg="green") if answer.reason is None else click.style("FAIL", fg="red", bold=True)
    click.echo(f"{word}  {answer.check.replace('_', ' ')}: {answer.asks}")
    if answer.reason is not None:
        click.echo(f"      {answer.reason}")
