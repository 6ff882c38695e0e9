"""The algorithms, one file each. A new one is a file here and a line in this tuple."""

from shared.algorithms.base import Algorithm, DeviceRound, Hyperparameters
from shared.algorithms.fedavg import FEDAVG
from shared.algorithms.fedper import FEDPER
from shared.algorithms.hermes import HERMES
from shared.errors import ConfigError
from shared.plugins import load_object, nearest

ALGORITHMS: tuple[Algorithm, ...] = (FEDAVG, FEDPER, HERMES)


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


__all__ = ["ALGORITHMS", "Algorithm", "DeviceRound", "Hyperparameters", "algorithm"]
