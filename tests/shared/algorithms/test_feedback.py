"""What is sent of an update in a lossy encoding, and what is left for the next."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from shared.algorithms.feedback import Outgoing, outgoing
from shared.channel_trace import channel_layout
from shared.channels import ChannelLayout
from shared.codec import decode_payload, encode_payload
from shared.encoding import LIKED, Encoding
from shared.pruning import covers, narrow, take
from shared.tensors import Masks, Subnet

LAYOUT = channel_layout(nn.Sequential(nn.Linear(16, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)), torch.ones(2, 16))
EVERYTHING = tuple(Encoding)


def send(
    upload: Subnet,
    received: Subnet,
    residual: Subnet | None = None,
    *,
    taken: tuple[str, ...] = ("int8",),
    layout: ChannelLayout | None = LAYOUT,
    link: str = "lte",
) -> Outgoing:
    residual = residual or Subnet({})
    return outgoing(upload, received, residual, layout, liked=LIKED[link], taken=taken)


def dense(seed: int) -> Subnet:
    drawn = np.random.default_rng(seed)
    return Subnet(
        {
            "0.weight": drawn.normal(size=(4, 16)).astype(np.float32),
            "2.weight": drawn.normal(size=(2, 4)).astype(np.float32),
            "2.bias": drawn.normal(size=2).astype(np.float32),
        }
    )


def mask(bits: str) -> Masks:
    return {"0": np.array([bit == "1" for bit in bits])}


def cut(subnet: Subnet, bits: str) -> Subnet:
    return Subnet(take(subnet.tensors, LAYOUT, mask(bits)), mask(bits))


def read(sent: Outgoing) -> Subnet:
    """What the coordinator reads."""
    payload = encode_payload(sent.subnet, encoding=sent.encoding, delta=sent.delta, run="run", round=1)
    return decode_payload(payload, limit=2**20).subnet


def test_a_residual_by_hand() -> None:
    """A row of 16 with the peak 127 * 2^-4: in steps of 2^-4, of which 0.3 loses 0.3 - 5/16."""
    before = {"w": np.ones((1, 16), np.float32), "steps": np.array(3)}
    after = {"w": np.ones((1, 16), np.float32), "steps": np.array(7)}
    after["w"][0, :2] = 1 + 127 / 16, 1 + 0.3
    first = send(Subnet(after), Subnet(before), layout=None)
    assert (first.encoding, first.delta) == (Encoding.INT8, True)
    assert first.subnet.tensors["steps"] == 7, "integers are absolute"
    lost = first.residual.tensors["w"]
    assert lost[0, 1] == pytest.approx(0.3 - 5 / 16, abs=1e-6)
    assert np.count_nonzero(lost) == 1
    assert first.loss == pytest.approx(abs(lost[0, 1]) / np.hypot(127 / 16, 0.3), rel=1e-5)
    again = send(Subnet(before), Subnet(before), first.residual, layout=None)
    np.testing.assert_array_equal(again.subnet.tensors["w"], lost)  # nothing was learnt: what was lost goes now


def test_nothing_is_lost_for_good() -> None:
    """Over the rounds, all that was read and what is still on the device are the sum of all differences."""
    start, residual, total, wanted = dense(0), Subnet({}), np.zeros((4, 16)), np.zeros((4, 16))
    for number in range(1, 30):
        upload = dense(number)
        sent = send(upload, start, residual, taken=("topk",), link="nb-iot")
        assert (sent.encoding, sent.delta) == (Encoding.TOPK, True)
        residual = sent.residual
        total += read(sent).tensors["0.weight"]
        wanted += upload.tensors["0.weight"] - start.tensors["0.weight"]
    np.testing.assert_allclose(total + residual.tensors["0.weight"], wanted, atol=1e-3)


def test_float32_is_absolute_and_leaves_nothing() -> None:
    upload = dense(1)
    sent = send(upload, dense(0), Subnet({"0.weight": np.ones((4, 16), np.float32)}), taken=("float32",))
    assert sent == Outgoing(upload)


def test_channels_that_go_take_their_residual_along() -> None:
    first = send(cut(dense(1), "1110"), dense(0))
    second = send(cut(dense(0), "0110"), dense(0), first.residual)
    kept = first.residual.tensors["0.weight"][[1, 2]]
    assert np.any(kept)
    np.testing.assert_allclose(second.subnet.tensors["0.weight"], kept, atol=1e-7)
    np.testing.assert_allclose(
        second.subnet.tensors["2.weight"], first.residual.tensors.get("2.weight", np.zeros((2, 3)))[:, 1:], atol=1e-7
    )
    assert second.residual.held is second.subnet.held


def test_a_residual_that_lacks_channels_is_let_go() -> None:
    first = send(cut(dense(1), "1100"), dense(0))
    second = send(cut(dense(0), "1110"), dense(0), first.residual)
    assert not second.subnet.tensors["0.weight"].any()


def test_differences_are_to_what_was_received_of_the_channels_that_are_left() -> None:
    """Received 1011, sent 0011."""
    upload, start = cut(dense(1), "0011"), cut(dense(0), "1011")
    sent = send(upload, start)
    assert sent.delta
    expected = dense(1).tensors["0.weight"][2:] - dense(0).tensors["0.weight"][2:]
    np.testing.assert_array_equal(sent.subnet.tensors["0.weight"], expected)
    np.testing.assert_array_equal(
        sent.subnet.tensors["2.weight"], dense(1).tensors["2.weight"][:, 2:] - dense(0).tensors["2.weight"][:, 2:]
    )


@pytest.mark.parametrize(
    ("taken", "encoding"), [(EVERYTHING, Encoding.INT8), (("topk",), Encoding.FLOAT32), (("int8",), Encoding.INT8)]
)
def test_values_are_never_sent_as_the_few_largest(taken: tuple[str, ...], encoding: Encoding) -> None:
    """A device that holds what it was not sent has nothing to tell the difference to."""
    upload = cut(dense(1), "1110")
    sent = send(upload, cut(dense(0), "0110"), dense(3), taken=taken, link="nb-iot")
    assert (sent.encoding, sent.delta, sent.residual.tensors) == (encoding, False, {})
    assert sent.subnet is upload


def test_nothing_that_came_in_is_changed() -> None:
    subnets: list[Any] = [dense(1), dense(0), dense(2)]
    before = [{name: array.copy() for name, array in subnet.tensors.items()} for subnet in subnets]
    send(*subnets)
    for subnet, tensors in zip(subnets, before, strict=True):
        assert all(np.array_equal(subnet.tensors[name], array) for name, array in tensors.items())


def test_the_same_gives_the_same() -> None:
    one, two = (send(dense(1), dense(0), dense(2), taken=EVERYTHING, link="nb-iot") for _ in range(2))
    assert read(one).tensors["0.weight"].tobytes() == read(two).tensors["0.weight"].tobytes()
    assert one.loss == two.loss


def test_cut_in_two_steps_is_cut_at_once() -> None:
    whole = dense(0)
    for wide, fewer in (("1111", "1010"), ("1110", "1010"), ("0101", "0101"), ("1101", "0001")):
        both = narrow(cut(whole, wide), LAYOUT, mask(fewer))
        for name, array in cut(whole, fewer).tensors.items():
            np.testing.assert_array_equal(both.tensors[name], array)
    assert covers(None, mask("0001"))
    assert covers(mask("1111"), None)
    assert not covers(mask("1110"), None)
    assert covers(mask("1110"), mask("0110"))
    assert not covers(mask("1110"), mask("0011"))
