from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.data.dataset import Dataset
from edge_agent.data.splits import split
from shared.config_data import DataSettings, PartitionSettings
from shared.errors import DataError


def a_dataset(labels: Any, **values: Any) -> Dataset:
    labels = np.asarray(labels, np.int64)
    return Dataset(np.zeros((len(labels), 1)), labels, tuple("abcdefghij"), **values)


@settings(max_examples=150, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=3, max_size=120),
    validation=st.floats(0.05, 0.4),
    test=st.floats(0.05, 0.4),
    seed=st.integers(0, 99),
)
def test_splits_are_disjoint_and_complete(labels: list[int], validation: float, test: float, seed: int) -> None:
    found = split(a_dataset(labels), np.arange(len(labels)), DataSettings(validation=validation, test=test, seed=seed))
    together = np.concatenate([found.train, found.validation, found.test])
    assert sorted(together) == list(range(len(labels)))
    assert abs(len(found.test) - test * len(labels)) <= 1
    assert abs(len(found.validation) - validation * len(labels)) <= 2


def test_splits_have_the_classes_in_proportion() -> None:
    labels = np.array([0] * 80 + [1] * 20)
    found = split(a_dataset(labels), np.arange(100), DataSettings(validation=0.2, test=0.2))
    assert np.bincount(labels[found.test]).tolist() == [16, 4]
    assert np.bincount(labels[found.validation]).tolist() == [16, 4]
    assert np.bincount(labels[found.train]).tolist() == [48, 12]


def test_a_class_seen_once_is_trained_on() -> None:
    labels = np.array([0] * 30 + [1])
    found = split(a_dataset(labels), np.arange(31), DataSettings())
    assert 30 in found.train


def test_only_the_part_is_split() -> None:
    part = np.arange(10, 40)
    found = split(a_dataset([0] * 100), part, DataSettings())
    assert sorted(np.concatenate([found.train, found.validation, found.test])) == part.tolist()


def test_the_sources_own_test_split_is_respected() -> None:
    own = np.arange(50) >= 40
    found = split(a_dataset([0] * 50, test=own), np.arange(50), DataSettings(validation=0.25, test=0.5))
    assert found.test.tolist() == list(range(40, 50))
    assert (len(found.validation), len(found.train)) == (10, 30)  # a quarter of what is not test


def test_a_part_without_test_examples_gives_some_up() -> None:
    own = np.arange(50) >= 40
    found = split(a_dataset([0] * 50, test=own), np.arange(40), DataSettings(validation=0.25, test=0.5))
    assert (len(found.test), len(found.validation), len(found.train)) == (20, 10, 10)


def test_seed_and_device_draw_differently_and_repeatably() -> None:
    def draw(**values: Any) -> Any:
        return split(a_dataset([0] * 50), np.arange(50), DataSettings(**values)).test.tolist()

    assert draw(seed=1) == draw(seed=1)
    assert draw(seed=1) != draw(seed=2)
    assert draw(seed=1) != draw(seed=1, partition=PartitionSettings(devices=2, index=1))


def test_max_per_class_thins_out_the_training_split_only() -> None:
    labels = np.array([0] * 60 + [1] * 30 + [2] * 4)
    whole = split(a_dataset(labels), np.arange(94), DataSettings())
    thin = split(a_dataset(labels), np.arange(94), DataSettings(max_per_class=5))
    assert np.bincount(labels[thin.train]).tolist() == [5, 5, min(5, int((labels[whole.train] == 2).sum()))]
    assert set(thin.train) <= set(whole.train)
    assert thin.validation.tolist() == whole.validation.tolist()
    assert thin.test.tolist() == whole.test.tolist()


def test_time_is_cut_at_the_end_of_each_owner_with_a_gap() -> None:
    owners = np.repeat([0, 1], 20)
    dataset = a_dataset([0] * 40, owners=owners, overlap=2)
    found = split(dataset, np.arange(40), DataSettings(validation=0.2, test=0.25))
    assert found.test.tolist() == [15, 16, 17, 18, 19, 35, 36, 37, 38, 39]
    # 13 and 14 share raw data with 15; a share of .2 / .75 of the 13 that are left is 3
    assert found.validation.tolist() == [10, 11, 12, 30, 31, 32]
    assert found.train.tolist() == [*range(8), *range(20, 28)]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 4), st.lists(st.integers(0, 2), min_size=60, max_size=120))
def test_what_overlaps_is_never_on_both_sides(overlap: int, owners: list[int]) -> None:
    dataset = a_dataset([0] * len(owners), owners=np.sort(np.array(owners)), overlap=overlap)
    found = split(dataset, np.arange(len(owners)), DataSettings())
    for later, earlier in ((found.test, found.validation), (found.validation, found.train), (found.test, found.train)):
        same = dataset.owners[later][:, None] == dataset.owners[earlier][None, :]  # type: ignore[index]
        assert np.all((later[:, None] - earlier[None, :])[same] > overlap)


def test_too_few_examples() -> None:
    with pytest.raises(DataError, match=r"2 examples leave none for training"):
        split(a_dataset([0, 1]), np.arange(2), DataSettings())
