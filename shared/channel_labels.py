"""Labels of channels, and which of them turned out to be the same: a union-find whose operations take whole tensors.

A label tensor (int64) has the shape of an activation and says for each of its elements which channel it belongs to;
where that does not change along an axis it is an expanded view, so its size does not matter. Label FIXED is everything
that can never be removed: what is joined with it stays for good.
"""

import numpy as np
import torch
from torch import Tensor

FIXED = 0


class Labels:
    """All labels handed out so far. `_root[label]` is the smallest label of its class, always up to date."""

    def __init__(self) -> None:
        self._root = np.zeros(1, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._root)

    def fresh(self, count: int) -> Tensor:
        """`count` labels of their own."""
        labels = np.arange(len(self), len(self) + count)
        self._root = np.concatenate([self._root, labels])
        return torch.from_numpy(labels)

    def roots(self, labels: Tensor) -> Tensor:
        """The representative of each element's class, as a label tensor of the same shape; a copy."""
        compact, shape = _compact(labels)
        return torch.from_numpy(self._root[compact.numpy()]).expand(shape)

    def join(self, first: Tensor, second: Tensor) -> None:
        """What stands at the same place in both (after broadcasting) is the same channel."""
        shape = np.broadcast_shapes(first.shape, second.shape)
        a, b = first.expand(shape), second.expand(shape)
        both_constant = [i for i in range(len(shape)) if a.stride(i) == 0 and b.stride(i) == 0]
        for axis in both_constant:
            a, b = a.narrow(axis, 0, min(1, shape[axis])), b.narrow(axis, 0, min(1, shape[axis]))
        self._union(a.reshape(-1).numpy(), b.reshape(-1).numpy())

    def freeze(self, labels: Tensor) -> None:
        """None of these channels can be removed."""
        compact, _ = _compact(labels)
        self.join(compact, torch.tensor(FIXED))

    def varies(self, labels: Tensor, axis: int) -> bool:
        """Whether the channel changes along the axis."""
        if labels.shape[axis] < 2 or labels.stride(axis) == 0:
            return False
        roots = self.roots(labels)
        return bool((roots != roots.narrow(axis, 0, 1)).any())

    def along(self, labels: Tensor, axis: int) -> Tensor:
        """One label per position of the axis; different channels at one position can only go together: joined."""
        others = [i for i in range(labels.dim()) if i != axis % labels.dim()]
        first = labels
        for other in others:
            first = first.narrow(other, 0, 1)
        if any(labels.stride(other) != 0 and labels.shape[other] > 1 for other in others):
            self.join(labels, first)
        return first.reshape(-1)

    def _union(
        self, a: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]", b: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]"
    ) -> None:
        while True:
            a, b = self._root[a], self._root[b]
            apart = a != b
            if not apart.any():
                return
            a, b = a[apart], b[apart]
            np.minimum.at(self._root, np.maximum(a, b), np.minimum(a, b))
            while True:  # every label points straight at its representative again
                shorter = self._root[self._root]
                if np.array_equal(shorter, self._root):
                    break
                self._root = shorter


def spread(vector: Tensor, shape: torch.Size, axis: int) -> Tensor:
    """The label tensor of that shape whose labels change along one axis only."""
    view = [1] * len(shape)
    view[axis] = -1
    return vector.view(view).expand(shape)


def fixed(shape: torch.Size) -> Tensor:
    """The label tensor of something that no removed channel changes."""
    return torch.tensor(FIXED).expand(shape)


def _compact(labels: Tensor) -> tuple[Tensor, torch.Size]:
    """The tensor without its repetitions, and the shape that expands it again."""
    compact = labels
    for axis in range(labels.dim()):
        if labels.stride(axis) == 0 and labels.shape[axis] > 1:
            compact = compact.narrow(axis, 0, 1)
    return compact, labels.shape
