"""The algorithms, one file each. A new one is a file here and a line in this tuple."""

from collections.abc import Mapping

from shared.algorithms.apfl import APFL
from shared.algorithms.base import Algorithm, DeviceRound, Hyperparameters, shared_names
from shared.algorithms.ditto import DITTO
from shared.algorithms.fedavg import FEDAVG
from shared.algorithms.fedavg_finetune import FEDAVG_FINETUNE
from shared.algorithms.fedbabu import FEDBABU
from shared.algorithms.fedper import FEDPER
from shared.algorithms.fedrep import FEDREP
from shared.algorithms.hermes import HERMES
from shared.algorithms.lg_fedavg import LG_FEDAVG
from shared.algorithms.local import LOCAL
from shared.algorithms.per_fedavg import PER_FEDAVG
from shared.errors import ConfigError
from shared.messages import Hyperparameter
from shared.plugins import load_object, nearest
from shared.validation import validate

ALGORITHMS: tuple[Algorithm, ...] = (
    FEDAVG,
    FEDAVG_FINETUNE,
    LOCAL,
    FEDPER,
    FEDREP,
    FEDBABU,
    LG_FEDAVG,
    APFL,
    DITTO,
    PER_FEDAVG,
    HERMES,
)


def algorithm(name: str) -> Algorithm:
    """The algorithm of that name, or the one that `package.module:ALGORITHM` points at."""
    if ":" in name:
        found = load_object(name)
        if not isinstance(found, Algorithm):
            raise ConfigError(f"{name} is a {type(found).__name__}, not an Algorithm (shared.algorithms.base)")
        return found
    by_name = {entry.name: entry for entry in ALGORITHMS}
    if name not in by_name:
        raise ConfigError(f"unknown algorithm {name!r}{nearest(name, by_name)}; use one of {', '.join(by_name)}")
    return by_name[name]


def hyperparameters(algorithm: Algorithm, given: Mapping[str, Hyperparameter]) -> Hyperparameters:
    """The algorithm's hyperparameters, the given ones in place of defaults. ConfigError names every wrong one, what
    is allowed and the nearest valid name."""
    return validate(algorithm.hyperparameters, given, source=f"hyperparameters of {algorithm.name}")


__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "DeviceRound",
    "Hyperparameters",
    "algorithm",
    "hyperparameters",
    "shared_names",
]
