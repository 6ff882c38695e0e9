"""The algorithm that the documentation writes: it works as printed, selected by `module:NAME`."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.algorithms import Algorithm, algorithm, hyperparameters
from shared.algorithms.conformance import CHECKS, Check
from shared.algorithms.fedavg import FEDAVG
from shared.errors import ConfigError
from shared.models import build_model

DOCUMENT = Path(__file__).parents[3] / "docs" / "extending.md"


@pytest.fixture
def fedprox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Algorithm]:
    code = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)[0]
    (tmp_path / "fedprox.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield algorithm("fedprox:FEDPROX")
    del sys.modules["fedprox"]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(fedprox: Algorithm, check: Check) -> None:
    check(fedprox, fedprox.hyperparameters())


@pytest.mark.parametrize(("pull", "same"), [(0.0, True), (0.5, False)])
def test_without_its_pull_it_is_fedavg(
    fedprox: Algorithm, make_fleet: Callable[..., Any], pull: float, same: bool
) -> None:
    model = build_model("digitscnn", {"width": 4, "classes": 4}, seed=0)
    ours, plain = make_fleet(fedprox, model, pull=pull), make_fleet(FEDAVG, model)
    ours.round()
    plain.round()
    for name in ("0.weight", "14.weight"):
        assert np.array_equal(ours.aggregate.tensors[name], plain.aggregate.tensors[name]) == same


def test_its_hyperparameters_are_checked_like_ours(fedprox: Algorithm) -> None:
    assert hyperparameters(fedprox, {"pull": 0.5}).model_dump()["pull"] == 0.5
    with pytest.raises(ConfigError, match=r"(?s)pul\b.*'pull'"):
        hyperparameters(fedprox, {"pul": 0.5})


def test_names_that_are_no_algorithm() -> None:
    with pytest.raises(ConfigError, match="did you mean 'fedavg'"):
        algorithm("fedavgs")
    with pytest.raises(ConfigError, match="is a int, not an Algorithm"):
        algorithm("shared.messages:PAGE")
    with pytest.raises(ConfigError, match="cannot import"):
        algorithm("no_such_module:ALGORITHM")
