"""Which channels a smaller network keeps: the most important ones, as many as a cost allows.

A *cost* says what the network with some channels costs: parameters, multiply-accumulates, or milliseconds measured on
the device. It is opaque here and may be slow and noisy: a choice asks for it a few times, never once per channel.
"""

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from shared.channels import FIXED, ChannelLayout
from shared.pruning import parameter_shapes, take, weight_uses
from shared.tensors import Array, Masks

Cost: TypeAlias = Callable[[Masks], float]
"""What the network with these channels costs, in any unit. But for noise, it does not rise when channels go."""
Importance: TypeAlias = Mapping[str, npt.NDArray[np.float64]]
"""Group -> how important each of its units is. The numbers of different groups are compared with each other."""

FLOOR = 0.125
"""Share of its units that a group keeps in any case."""
CLOSE = 0.95
"""Share of its goal from which on a cost is close enough."""
SEARCHES = 32
"""Bisections after which no further ones are planned: the closest choice so far is taken."""


# --- costs ----------------------------------------------------------------------------------------------------------


def parameter_cost(tensors: Mapping[str, Array], layout: ChannelLayout) -> Cost:
    """Trainable numbers of the shrunk network, an int. tensors: the dense model's state."""
    shapes = parameter_shapes(tensors)
    return lambda held: sum(map(math.prod, layout.shapes(shapes, held).values()))


def mac_cost(model: nn.Module, layout: ChannelLayout, example: Tensor) -> Cost:
    """Multiply-accumulates of the shrunk network for one example, an int: `macs(shrink(model, layout, held), example)`.

    The dense model runs once, here: each weight is used at as many positions however many channels it has lost.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    uses = [(names.get(id(weight), ""), tuple(weight.shape), times) for weight, times in weight_uses(model, example)]
    shapes = {name: shape for name, shape, _ in uses if name}

    def cost(held: Masks) -> int:
        left = layout.shapes(shapes, held)
        return sum(times * math.prod(left.get(name, shape)) for name, shape, times in uses) // example.shape[0]

    return cost


# --- importance -----------------------------------------------------------------------------------------------------


def scores(tensors: Mapping[str, Array], layout: ChannelLayout, held: Masks | None = None) -> Importance:
    """How important each unit is: the L2 norm of all held parameters that would go with it, over the mean norm of its
    group's held units. Units that are not held get 0.

    A function of the tensors alone: devices that hold the same channels of the same tensors rank them alike.
    """
    held = layout.full() if held is None else held
    squares = {group: np.zeros(units) for group, units in layout.groups.items()}
    for name in parameter_shapes(tensors):  # one at a time: in float64, all are twice what a small device has room for
        sums = unit_sums({name: np.square(tensors[name], dtype=np.float64)}, layout, held)
        squares = {group: square + sums[group] for group, square in squares.items()}
    norms = {group: np.sqrt(square) for group, square in squares.items()}
    return {group: one / (one[held[group]].mean() or 1.0) for group, one in norms.items()}


def unit_sums(tensors: Mapping[str, Array], layout: ChannelLayout, held: Masks) -> Importance:
    """Per unit the sum of all held numbers of these dense tensors that would go with it; 0 for units not held."""
    total = np.zeros(sum(layout.groups.values()) + 1)  # FIXED adds to the last one
    for name, array in take(tensors, layout, held).items():
        for axis, (units, kept) in enumerate(zip(layout.axes.get(name, ()), layout.index(name, held), strict=True)):
            if units is not None:
                others = tuple(other for other in range(array.ndim) if other != axis)
                np.add.at(total, units if kept is None else units[kept], array.sum(axis=others, dtype=np.float64))
    ends = np.cumsum(list(layout.groups.values()))
    return dict(zip(layout.groups, np.split(total[:FIXED], ends[:-1]), strict=True)) if layout.groups else {}


# --- the choice -----------------------------------------------------------------------------------------------------


def choose(
    tensors: Mapping[str, Array],
    layout: ChannelLayout,
    held: Masks | None,
    *,
    cost: Cost,
    goal: float,
    then: float | None = None,
    multiple: int = 8,
    floor: float = FLOOR,
) -> Masks:
    """`drop` by the `scores` of the dense model's state.

    held  what is held now; None: everything
    then  the goal of a later choice, below this one: what it would keep is kept now. Several small steps, each the best
          one for its own goal, can end where only far too large steps are left, for masks only shrink
    """
    held = layout.full() if held is None else held
    layout.check(held)
    worth = scores(tensors, layout, held)
    spared = None
    if then is not None and then < goal:
        spared = drop(worth, layout, held, cost=cost, goal=then, multiple=multiple, floor=floor)
    return drop(worth, layout, held, cost=cost, goal=goal, spared=spared, multiple=multiple, floor=floor)


def start(tensors: Mapping[str, Array], layout: ChannelLayout, width: float, multiple: int = 8) -> Masks:
    """The most important ceil(width * units) channels of every group, rounded up to `multiple`; 0 < width <= 1."""
    sizes = {group: -(-math.ceil(width * units) // multiple) * multiple for group, units in layout.groups.items()}
    return _keep(_ranks(scores(tensors, layout), layout.full()), layout.full(), sizes)


def drop(
    importance: Importance,
    layout: ChannelLayout,
    held: Masks,
    *,
    cost: Cost,
    goal: float,
    spared: Masks | None = None,
    multiple: int = 8,
    floor: float = FLOOR,
) -> Masks:
    """Drop the least important channels until cost(masks) <= goal.

    Channels go in blocks that leave a multiple of `multiple` in their group; the block whose channels are the least
    important on average goes first, whatever its group. Where the last block takes much more than was asked, either its
    group stays as it is and others give more, or it goes and others give less, and so on, until the cost is within 5 %
    below the goal; failing that, the closest that was found is taken.

    A group keeps at least `floor` of its units, what is `spared`, and at least `multiple` unless the goal cannot be
    reached otherwise: only then groups go on to multiple / 2, and so on down. If that does not reach it either, the
    smallest network is returned: compare its cost. Masks only shrink. Deterministic, if the cost is. The cost is asked
    for about log2(blocks) times where single blocks are small against the goal, else for some times as often.
    """
    spared = spared or {group: np.zeros_like(mask) for group, mask in held.items()}
    ranks = _ranks({group: np.where(spared[group], np.inf, one) for group, one in importance.items()}, held)
    least = {group: max(floor * mask.size, spared[group].sum()) for group, mask in held.items()}
    blocks = _blocks(importance, ranks, held, multiple, least)
    whole = {group: int(mask.sum()) for group, mask in held.items()}
    known: dict[tuple[int, ...], float] = {}

    def sizes(fixed: Mapping[str, int], gone: Sequence[_Block]) -> dict[str, int]:
        """Channels left of each group."""
        left = {**whole, **fixed}
        for block in gone:
            left[block.group] = min(block.left, left[block.group])
        return left

    def price(left: Mapping[str, int]) -> float:
        key = tuple(left.values())
        if key not in known:
            known[key] = cost(_keep(ranks, held, left))
        return known[key]

    def needed(fixed: Mapping[str, int], free: Sequence[_Block]) -> int:
        """How many of the blocks must go besides; one more than there are if all of them are not enough."""
        return bisect.bisect_left(
            range(len(free) + 1), True, key=lambda count: price(sizes(fixed, free[:count])) <= goal
        )

    count = needed({}, blocks)
    if not 0 < count <= len(blocks):
        return _keep(ranks, held, sizes({}, blocks[:count]))
    found = [sizes({}, blocks[:count])]
    blocks = [block for block in blocks if block.tier <= blocks[count - 1].tier]
    searches = [dict[str, int]()]
    for fixed in searches:
        free = [block for block in blocks if block.group not in fixed]
        count = needed(fixed, free)
        if count > len(free):
            continue
        found.append(sizes(fixed, free[:count]))
        if price(found[-1]) >= CLOSE * goal:
            break
        if count > 0 and len(searches) < SEARCHES:
            last = free[count - 1]
            ladder = [whole[last.group], *(block.left for block in blocks if block.group == last.group)]
            at = ladder.index(last.left)
            near = [ladder[place] for place in (at - 1, at, at + 1, at - 2) if 0 <= place < len(ladder)]
            searches += [{**fixed, last.group: left} for left in near]
    return _keep(ranks, held, max(found, key=price))


@dataclass(frozen=True)
class _Block:
    """Channels of one group that go together, and leave the `left` most important ones."""

    group: str
    left: int
    tier: int
    importance: float


def _blocks(
    importance: Importance, ranks: Mapping[str, Array], held: Masks, multiple: int, least: Mapping[str, float]
) -> list[_Block]:
    """All blocks that leave so many units of each group, in the order in which they go; within a group, the larger
    sizes first."""
    blocks = []
    for group, mask in held.items():
        descending = importance[group][np.argsort(ranks[group])]
        before = int(mask.sum())
        whole = [(0, left) for left in range((before - 1) // multiple * multiple, 0, -multiple)]
        small = [(tier, multiple >> tier) for tier in range(1, multiple.bit_length())]
        for tier, left in [*whole, *small]:
            if least[group] <= left < before:
                blocks.append(_Block(group, left, tier, float(descending[left:before].mean())))
                before = left
    return sorted(blocks, key=lambda block: (block.tier, block.importance))


def _ranks(importance: Importance, held: Masks) -> dict[str, npt.NDArray[np.int64]]:
    """Group -> the place of each unit when the held ones are sorted from the most important one down."""
    worth = {group: np.where(mask, importance[group], -np.inf) for group, mask in held.items()}
    return {group: np.argsort(np.argsort(-one, kind="stable")) for group, one in worth.items()}


def _keep(ranks: Mapping[str, Array], held: Masks, sizes: Mapping[str, int]) -> Masks:
    """The most important channels of what is held, as many of each group as `sizes` says."""
    return {group: mask & (ranks[group] < sizes[group]) for group, mask in held.items()}
