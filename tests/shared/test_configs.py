"""The configurations that come with the package: what their names promise, and that an algorithm runs in them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from edge_agent.data import Dataset, device_data, read_source
from shared.aggregation import Update, WeightedMean
from shared.algorithms import ALGORITHMS, algorithm, hyperparameters
from shared.algorithms.device import check_fits, open_round, personal_model, set_up
from shared.config import RunConfig
from shared.config_data import DataSettings
from shared.model_state import state_tensors
from shared.models import build_model, example_input, input_shape
from shared.settings import bundled_config, load_run_config
from shared.tensors import Subnet
from shared.toml import bundled_names
from shared.training import Split

NAMES = [name for name in bundled_names("configs") if name.count("_") == 2]
SETTINGS = ("CIFAR10_resnet18", "MNIST_lenet", "HAR_har1d")
SOURCES = {"CIFAR10": ("cifar10", "images"), "MNIST": ("npz",), "HAR": ("csv",)}
AUTHORS = {"fedrep", "fedbabu", "lg-fedavg"}
"""Whose code has numbers for CIFAR-10 or its like: the partition of these follows them, that of the others ours."""


def config_of(name: str) -> RunConfig:
    return load_run_config(bundled_config(name)).config


def test_every_algorithm_has_one_for_every_data_set() -> None:
    wanted = {f"{entry.name}_{setting}" for entry in ALGORITHMS for setting in SETTINGS}
    assert wanted <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_says_algorithm_data_and_model(name: str) -> None:
    config = config_of(name)
    method, data, model = name.split("_")
    assert config.algorithm.name == method
    assert config.data.source in SOURCES[data]
    assert config.model.name.startswith(model)
    lines = bundled_config(name).read_text().splitlines()
    assert lines[0].startswith("# ")
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("name", NAMES)
def test_a_run_can_be_defined_by_it(name: str) -> None:
    """Model, hyperparameters and channels fit each other, and a round can open with the devices that there are."""
    config = config_of(name)
    chosen = algorithm(config.algorithm.name)
    hp = hyperparameters(chosen, config.algorithm.hyperparameters)
    model = build_model(config.model.name, config.model.options, seed=config.run.seed)
    setup = set_up(chosen, hp, model, example_input(config.model.name, config.model.options))
    assert bool(setup.shared) == (chosen.name != "local")
    assert config.rounds.quorum <= config.rounds.min_devices <= config.fleet.devices


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_is_to_be_compared_differs_in_the_algorithm_alone(setting: str) -> None:
    names = [f"{entry.name}_{setting}" for entry in ALGORITHMS if setting[0] != "C" or entry.name not in AUTHORS]
    configs = [config_of(name) for name in names]
    for section in ("run", "model", "rounds", "data", "fleet"):
        assert len({getattr(config, section).model_dump_json() for config in configs}) == 1, section
    shared = [config.algorithm.hyperparameters for config in configs]
    for key in ("epochs", "lr", "batch_size"):
        assert len({given[key] for given in shared}) == 1, key


# --- on the data ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def read() -> Callable[[DataSettings], Dataset]:
    """read_source, which reads what several configurations have in common once."""
    known: dict[str, Dataset] = {}

    def read(settings: DataSettings) -> Dataset:
        place = f"{settings.path}{settings.options}{settings.partition.index if '{' in str(settings.path) else ''}"
        if place not in known:
            known[place] = read_source(settings)
        return known[place]

    return read


@pytest.mark.data
@pytest.mark.parametrize("name", [name for name in NAMES if "CIFAR10" not in name])
def test_two_devices_finish_a_round_with_it(name: str, read: Callable[[DataSettings], Dataset]) -> None:
    """A few examples of each class, the other settings as they are: what is uploaded fits and is aggregated."""
    config = config_of(name)
    chosen = algorithm(config.algorithm.name)
    hp = hyperparameters(chosen, config.algorithm.hyperparameters).model_copy(update={"finetune_epochs": 1})
    model = build_model(config.model.name, config.model.options, seed=0)
    setup = set_up(chosen, hp, model, example_input(config.model.name, config.model.options))
    initial = Subnet(state_tensors(model, sorted(setup.shared)))
    accumulator = chosen.aggregate(setup.layout, hp, WeightedMean)
    for index in range(2):
        part = config.data.partition.model_copy(update={"devices": config.fleet.devices, "index": index})
        settings = config.data.model_copy(update={"partition": part, "max_per_class": 4})
        data = device_data(read(settings), settings)
        assert data.shape == input_shape(config.model.name, config.model.options)
        assert len(data.classes) == config.model.options.get("classes", 10)
        train, validation = (
            Split(torch.from_numpy(examples.inputs), torch.from_numpy(examples.labels))
            for examples in (data.train, data.validation)
        )
        for final in (False, True):
            round_ = open_round(
                setup,
                initial,
                {},
                number=1,
                final=final,
                train=train,
                validation=validation,
                multiple=8,
                generator=torch.Generator().manual_seed(index),
                check_time=lambda: None,
            )
            if not final:
                chosen.train(round_, hp)
                upload = chosen.upload(round_, hp)
                check_fits(setup, upload)
                accumulator.add(Update(upload, float(len(train))))
            own = personal_model(setup, round_)[0]
            assert all(np.isfinite(array).all() for array in state_tensors(own).values())
    assert accumulator.result(initial.tensors).tensors.keys() == setup.shared
