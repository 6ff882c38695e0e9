"""What a device sends of its update, and what is left for the next: encoding with error feedback.

Sending differences, and adding to each what encoding lost of the one before, makes lossy encodings converge where the
losses would otherwise add up. Seide et al., "1-bit stochastic gradient descent", Interspeech 2014; Karimireddy et al.,
"Error feedback fixes SignSGD", ICML 2019, Algorithm 1: p = difference + e, sent = C(p), e' = p - sent.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from shared.channels import ChannelLayout
from shared.encoding import Encoding, choose, decoded
from shared.pruning import covers, narrow
from shared.tensors import Array, Masks, Subnet, Tensors


@dataclass(frozen=True)
class Outgoing:
    """An update as `shared.codec.write_payload` takes it.

    subnet    the tensors before they are encoded
    delta     whether its float tensors are differences to the global ones
    residual  what encoding loses of them, in the shapes of the update; tensors of which nothing is lost are left out
    loss      the residual's L2 norm over that of the float tensors; 0 where these are 0
    """

    subnet: Subnet
    encoding: Encoding = Encoding.FLOAT32
    delta: bool = False
    residual: Subnet = field(default_factory=lambda: Subnet({}))
    loss: float = 0.0


def outgoing(
    upload: Subnet,
    received: Subnet,
    residual: Subnet,
    layout: ChannelLayout | None,
    *,
    liked: Sequence[Encoding],
    taken: Sequence[str],
) -> Outgoing:
    """The update in the first of the `liked` encodings that the coordinator has `taken`.

    upload    what the algorithm uploads, absolute
    received  the global tensors of the round
    residual  of the last update, with the channels that this one had
    layout    None unless the algorithm prunes

    A lossy encoding codes differences to what was received. Where that lacks some channels of the update, the values
    themselves are sent: never as TOPK, which would make most of them 0, and nothing is fed back.
    """
    delta = covers(received.held, upload.held)
    encoding = choose([one for one in liked if delta or one is not Encoding.TOPK], taken)
    if encoding is Encoding.FLOAT32 or not delta:
        return Outgoing(upload, encoding)
    start = _cut(received, layout, upload.held)
    before = _cut(residual, layout, upload.held) if covers(residual.held, upload.held) else {}
    differences: Tensors = {}
    for name, array in upload.tensors.items():
        if array.dtype.kind == "f":
            array = array - start[name]
            array += before.get(name, 0)
        differences[name] = array
    target = Subnet(differences, upload.held)
    read = decoded(target, encoding).tensors
    lost = {name: array - read[name] for name, array in differences.items() if array.dtype.kind == "f"}
    lost = {name: array for name, array in lost.items() if array.any()}
    whole = _norm(array for array in differences.values() if array.dtype.kind == "f")
    loss = _norm(lost.values()) / whole if whole else 0.0
    return Outgoing(target, encoding, delta=True, residual=Subnet(lost, upload.held), loss=loss)


def _cut(subnet: Subnet, layout: ChannelLayout | None, held: Masks | None) -> Tensors:
    return subnet.tensors if layout is None else narrow(subnet, layout, held).tensors


def _norm(arrays: Iterable[Array]) -> float:
    return math.sqrt(sum(float(np.vdot(array, array)) for array in arrays))
