"""Which settings of rounds make no sense is said before anything is sent."""

import pytest
from pydantic import ValidationError

from coordinator.definition import define
from shared.config import RunConfig
from shared.config_rounds import RoundSettings
from shared.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quorum": 5, "min_devices": 5, "enough": 4}, "enough 4 is less than quorum 5"),
        ({"cohort": 10, "enough": 11}, "enough 11 can never be met by a cohort of 10: raise cohort"),
        ({"mode": "buffered", "enough": 3}, "enough 3 may never be met by 2 devices"),
    ],
)
def test_an_impossible_number_is_named_with_its_remedy(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RoundSettings.model_validate(settings)


def test_over_selection_is_possible() -> None:
    assert RoundSettings(cohort=13, enough=10, quorum=5, min_devices=13).enough == 10


def test_what_cannot_be_buffered_is_refused_with_the_reason() -> None:
    config = RunConfig.model_validate({"algorithm": {"name": "hermes"}, "rounds": {"mode": "buffered"}})
    with pytest.raises(ConfigError, match="not possible with hermes: which channels are given up is agreed"):
        define(config)


def test_statistics_are_known_by_name() -> None:
    config = RunConfig.model_validate({"algorithm": {"name": "fedavg"}, "rounds": {"mode": "buffered"}})
    definition, _, shared = define(config)
    assert definition.statistics
    assert all("running_" in name for name in definition.statistics)
    assert {name for name in shared if "running_" in name} == set(definition.statistics)
