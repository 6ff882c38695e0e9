"""What the README shows of the code is the code."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_algorithm_that_it_shows_is_the_file() -> None:
    assert (ROOT / "shared/algorithms/fedper.py").read_text() in README


def test_every_file_that_it_names_is_there() -> None:
    named = re.findall(r"\b(?:scripts|configs|benchmarks|docs|firmware_profiles)/[\w./-]*\w", README)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_diagram_of_the_rounds_is_the_transition_table() -> None:
    from coordinator.engine import RoundEngine
    from coordinator.transitions import diagram

    assert diagram(RoundEngine.transitions) in (ROOT / "docs/architecture.md").read_text()
