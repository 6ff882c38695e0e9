"""The layout as data: positions, shapes, refusals, digest; and the union-find behind it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.channel_labels import FIXED, Labels
from shared.channels import ChannelLayout, selection
from shared.errors import MalformedPayload
from shared.tensors import Masks


def layout() -> ChannelLayout:
    """conv `a` (3 channels) and conv `b` (2), concatenated before `c`, whose first input position is fixed."""
    return ChannelLayout(
        {"a": 3, "b": 2},
        {
            "a.weight": (np.array([0, 1, 2]), None, None),
            "b.weight": (np.array([3, 4]), None, None),
            "c.weight": (None, np.array([-1, 0, 1, 2, 3, 4])),
        },
    )


def held() -> Masks:
    return {"a": np.array([True, False, True]), "b": np.array([False, True])}


def positions(index: tuple[np.ndarray | None, ...]) -> list[list[int] | None]:
    return [None if one is None else one.tolist() for one in index]


def test_index_gives_the_held_positions_of_each_axis() -> None:
    assert positions(layout().index("a.weight", held())) == [[0, 2], None, None]
    assert positions(layout().index("c.weight", held())) == [None, [0, 1, 3, 5]]
    assert layout().index("c.weight", held())[1].dtype == np.int64


def test_index_of_what_is_whole_or_unknown() -> None:
    assert layout().index("a.weight", layout().full()) == (None, None, None)
    assert layout().index("elsewhere", held()) == ()


def test_shapes_are_cut_where_channels_lie() -> None:
    assert layout().shape("c.weight", (7, 6), held()) == (7, 4)
    assert layout().shape("elsewhere", (7, 6), held()) == (7, 6)
    assert layout().shapes({"a.weight": (3, 1, 5), "x": ()}, held()) == {"a.weight": (2, 1, 5), "x": ()}


def test_selection_reads_and_writes_the_dense_array() -> None:
    dense = np.arange(42).reshape(7, 6)
    place = selection(layout().index("c.weight", held()), dense.shape)
    assert (dense[place] == dense[:, [0, 1, 3, 5]]).all()
    dense[place] = 0
    assert dense.sum() == dense[:, [2, 4]].sum() > 0
    assert dense[selection((), dense.shape)].shape == dense.shape


@pytest.mark.parametrize(
    ("masks", "says"),
    [
        ({"a": np.ones(3, bool)}, "b missing or unknown"),
        ({**held(), "z": np.ones(1, bool)}, "z missing or unknown"),
        ({**held(), "a": np.ones(4, bool)}, r"mask of a is bool\[4\]; the group needs bool\[3\]"),
        ({**held(), "a": np.ones(3, np.int64)}, r"int64\[3\]"),
        ({**held(), "b": np.zeros(2, bool)}, "mask of b holds no channel"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks: Masks, says: str) -> None:
    layout().check(held())
    with pytest.raises(MalformedPayload, match=says):
        layout().check(masks)


def test_the_digest_changes_with_anything_in_the_layout() -> None:
    base = layout()
    others = [
        ChannelLayout({"a": 3, "x": 2}, base.axes),
        ChannelLayout({"a": 2, "b": 3}, base.axes),
        ChannelLayout(base.groups, {**base.axes, "d": (np.array([0]),)}),
        ChannelLayout(base.groups, {**base.axes, "a.weight": (np.array([0, 2, 1]), None, None)}),
        ChannelLayout(base.groups, {**base.axes, "a.weight": (None, np.array([0, 1, 2]), None)}),
    ]
    assert layout().digest == base.digest
    assert len({base.digest, *(other.digest for other in others)}) == 6
    reordered = ChannelLayout(base.groups, dict(reversed(base.axes.items())))
    assert reordered.digest == base.digest


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=60))
def test_the_union_find_agrees_with_joining_one_by_one(pairs: list[tuple[int, int]]) -> None:
    labels = Labels()
    everything = torch.cat([torch.tensor([FIXED]), labels.fresh(30)])
    classes = [{label} for label in range(31)]
    for a, b in pairs:
        merged = classes[a] | classes[b]
        for label in merged:
            classes[label] = merged
    for half in (pairs[::2], pairs[1::2]):
        if half:
            labels.join(torch.tensor([a for a, _ in half]), torch.tensor([b for _, b in half]))
    assert labels.roots(everything).tolist() == [min(one) for one in classes]


def test_joining_large_expanded_labels_costs_no_memory_for_their_size() -> None:
    labels = Labels()
    first, second = labels.fresh(4), labels.fresh(4)
    huge = (10**6, 4, 10**6)
    labels.join(first.view(1, 4, 1).expand(huge), second.view(1, 4, 1).expand(huge))
    assert labels.roots(second).tolist() == first.tolist()
