"""docs/algorithms.md says what the code says: every algorithm, and every setting with its default."""

import re
from pathlib import Path

import pytest

from shared.algorithms import ALGORITHMS, Algorithm, Hyperparameters
from shared.toml import toml_value
from shared.validation import allowed

DOCUMENT = (Path(__file__).parents[3] / "docs" / "algorithms.md").read_text()


def table(settings: type[Hyperparameters], beyond: type[Hyperparameters] | None = None) -> str:
    """Markdown of the settings that `beyond` does not have, or has with another default or meaning."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for name, field in settings.model_fields.items():
        known = beyond.model_fields.get(name) if beyond else None
        if known and (known.default, known.description) == (field.default, field.description):
            continue
        default = "" if field.default is None else f" `{toml_value(field.default)}`"
        meaning = "; ".join(filter(None, (field.description, allowed(field))))
        rows.append(f"| `{name}` |{default} | {meaning} |")
    return "\n".join(rows)


def test_the_settings_of_all_are_those_of_the_class() -> None:
    assert table(Hyperparameters) in DOCUMENT


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.name)
def test_an_algorithms_own_settings_are_those_of_its_class(algorithm: Algorithm) -> None:
    """If this fails, write the table of the assertion into the document."""
    own = table(algorithm.hyperparameters, Hyperparameters)
    assert own.count("\n") == 1 or own in DOCUMENT


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.name)
def test_an_algorithm_is_listed_with_its_paper(algorithm: Algorithm) -> None:
    (row,) = re.findall(rf"^\| `{algorithm.name}` .*$", DOCUMENT.partition("\n## ")[0], flags=re.MULTILINE)
    assert algorithm.paper in row or not algorithm.paper.startswith("arXiv")
