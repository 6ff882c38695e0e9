"""Which channels the labelled pass finds in small networks, what it freezes, and what it refuses."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.channel_trace import channel_layout, verify_layout
from shared.channels import ChannelLayout
from shared.errors import ModelError

IMAGE = torch.zeros(2, 3, 8, 8)


class Net(nn.Module):
    """Two convolutions and a classifier; what happens in between is given."""

    def __init__(self, between: Callable[["Net", Tensor], Tensor], leaving: int = 6, **layers: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.last = nn.Linear(leaving, 5)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.between(self, self.first(x)))
        return y


def resolved(between: Callable[[Net, Tensor], Tensor], leaving: int = 4, **layers: nn.Module) -> ChannelLayout:
    """The layout, after the self-test has confirmed it."""
    torch.manual_seed(0)
    model = Net(between, leaving, **layers)
    layout = channel_layout(model, IMAGE)
    for seed in range(3):
        verify_layout(model, layout, IMAGE, seed=seed)
    return layout


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def test_a_chain_has_a_group_per_layer_and_keeps_input_and_classifier() -> None:
    layout = resolved(lambda net, x: pooled(net.second(x).relu()))
    assert layout.groups == {"first": 4, "second": 4}
    assert list(layout.axes) == ["first.weight", "first.bias", "second.weight", "second.bias", "last.weight"]
    assert [one is None for one in layout.axes["first.weight"]] == [False, True, True, True]
    assert layout.axes["last.weight"][0] is None


def test_a_residual_sum_makes_one_group_named_after_the_first_producer() -> None:
    assert resolved(lambda net, x: pooled(x + F.relu(net.second(x)))).groups == {"first": 4}
    assert resolved(lambda net, x: pooled(net.second(x).add_(x))).groups == {"first": 4}


def test_batch_norm_parameters_and_statistics_belong_to_their_channel() -> None:
    layout = resolved(lambda net, x: pooled(net.norm(net.second(x)).relu()), norm=nn.BatchNorm2d(4))
    own = layout.axes["second.bias"][0]
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert (layout.axes[f"norm.{name}"][0] == own).all()
    assert "norm.num_batches_tracked" not in layout.axes


def test_flatten_gives_a_channel_all_its_columns() -> None:
    for flatten in (lambda x: x.flatten(1), lambda x: x.view(x.size(0), -1), lambda x: torch.flatten(x, 1)):
        layout = resolved(lambda net, x, flatten=flatten: flatten(net.second(x)), leaving=256)
        assert layout.axes["last.weight"][1].tolist() == [4 + channel for channel in range(4) for _ in range(64)]


def test_a_number_of_features_that_the_code_spells_out_is_frozen() -> None:
    assert resolved(lambda net, x: net.second(x).view(-1, 256), leaving=256).groups == {"first": 4}
    assert resolved(lambda net, x: net.second(x).reshape(2 if x.shape[0] == 2 else 4, 256), 256).groups == {"first": 4}


def test_concatenation_keeps_the_groups_apart() -> None:
    layout = resolved(lambda net, x: pooled(torch.cat([x, net.second(x)], 1)), leaving=8)
    assert layout.groups == {"first": 4, "second": 4}
    assert layout.axes["last.weight"][1].tolist() == list(range(8))


def test_halves_that_are_tied_to_different_layers_become_groups_of_their_own() -> None:
    """Every producer must keep a channel, so units that have different producers cannot share one group."""
    layout = resolved(
        lambda net, x: pooled(net.wide(x) + torch.cat([x, net.second(x)], 1)), leaving=8, wide=nn.Conv2d(4, 8, 1)
    )
    assert layout.groups == {"first": 4, "second": 4}


def test_two_groups_of_one_first_producer_get_different_names() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Conv2d(3, 8, 1)
            self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            self.last = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(pooled(self.wide(x) + torch.cat([self.left(x), self.right(x)], 1)))
            return y

    layout = channel_layout(Wide(), IMAGE)
    verify_layout(Wide(), layout, IMAGE)
    assert layout.groups == {"wide": 4, "wide#2": 4}


def test_depthwise_convolutions_follow_their_input() -> None:
    layout = resolved(lambda net, x: pooled(net.depthwise(x)), depthwise=nn.Conv2d(4, 4, 3, groups=4))
    assert layout.groups == {"first": 4}
    doubled = resolved(lambda net, x: pooled(net.depthwise(x)), leaving=8, depthwise=nn.Conv2d(4, 8, 3, groups=4))
    assert doubled.axes["last.weight"][1].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_grouped_convolutions_lose_the_same_slot_of_every_group() -> None:
    layout = resolved(lambda net, x: pooled(net.grouped(x)), leaving=6, grouped=nn.Conv2d(4, 6, 3, groups=2))
    assert layout.groups == {"first": 2, "grouped": 3}
    assert layout.axes["first.weight"][0].tolist() == [0, 1, 0, 1]
    assert layout.axes["last.weight"][1].tolist() == [2, 3, 4, 2, 3, 4]


def test_squeeze_and_excitation_as_most_people_write_it() -> None:
    def excite(net: Net, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        weights = net.up(net.down(F.adaptive_avg_pool2d(x, 1).view(b, c)).relu()).sigmoid().view(b, c, 1, 1)
        return pooled(x * weights.expand_as(x))

    layout = resolved(excite, down=nn.Linear(4, 2), up=nn.Linear(2, 4))
    assert layout.groups == {"first": 4, "down": 2}
    assert layout.axes["up.weight"][0].tolist() == [0, 1, 2, 3]


def test_an_attention_map_over_positions_leaves_the_channels_free() -> None:
    layout = resolved(lambda net, x: pooled(x * net.map(x).sigmoid()), map=nn.Conv2d(4, 1, 1))
    assert layout.groups == {"first": 4}


@pytest.mark.parametrize(
    "between",
    [
        lambda net, x: pooled(torch.cat(x.chunk(2, dim=1)[::-1], 1)),
        lambda net, x: pooled(x.view(2 if len(x) == 2 else 4, 2, 2, 8, 8).transpose(1, 2).flatten(1, 2)),
        lambda net, x: pooled(x[:, [3, 2, 1, 0]]),
        lambda net, x: pooled(F.group_norm(x, 2)),
        lambda net, x: pooled(F.layer_norm(x, x.shape[1:])),
        lambda net, x: pooled(F.softmax(x, 1)),
        lambda net, x: pooled(x * torch.arange(4.0, dtype=x.dtype).view(1, 4, 1, 1)),
        lambda net, x: pooled(F.pad(x, (0, 0, 0, 0, 0, 1)))[:, :4],
        lambda net, x: pooled(x) * x.mean((1, 2, 3)).unsqueeze(1),
    ],
    ids=["chunk", "shuffle", "order", "group norm", "layer norm", "softmax", "factors", "padded", "mean"],
)
def test_what_is_unsafe_is_frozen(between: Callable[[Net, Tensor], Tensor]) -> None:
    assert "first" not in resolved(between).groups


def test_normalization_over_channels_as_a_layer_is_frozen_with_its_parameters() -> None:
    layout = resolved(lambda net, x: pooled(net.second(net.norm(x))), norm=nn.GroupNorm(2, 4))
    assert layout.groups == {"second": 4}
    assert not any(name.startswith("norm") for name in layout.axes)


def test_cutting_positions_instead_of_channels_freezes_nothing() -> None:
    layout = resolved(lambda net, x: pooled(net.second(x)[:, :, 1:, ::2] + x[:, :, :-1, ::2]))
    assert layout.groups == {"first": 4}


def test_a_layer_used_twice_has_one_group() -> None:
    layout = resolved(lambda net, x: pooled(net.second(net.second(x).relu())))
    assert layout.groups == {"first": 4}


def test_a_module_under_two_names_is_found_under_both() -> None:
    shared = nn.Conv2d(4, 4, 1)
    layout = resolved(lambda net, x: pooled(net.one(x) + net.two(x)), one=shared, two=shared)
    assert layout.groups == {"first": 4, "one": 4}
    assert (layout.axes["one.weight"][1] == layout.axes["two.weight"][1]).all()


def test_a_weight_that_is_used_in_another_way_as_well_stays_whole() -> None:
    layout = resolved(lambda net, x: pooled(net.second(x)) * net.second.weight.sum())
    assert layout.groups == {}


def test_a_weight_that_is_computed_is_not_pruned() -> None:
    layout = resolved(
        lambda net, x: pooled(net.second(x)), second=nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))
    )
    assert layout.groups == {}


def test_layers_that_only_training_uses_are_found() -> None:
    class Auxiliary(Net):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
            x = self.first(x)
            main = self.last(pooled(self.second(x)))
            return (main, self.extra(pooled(x))) if self.training else (main,)

    model = Auxiliary(lambda net, x: x, 4, extra=nn.Linear(4, 5))
    layout = channel_layout(model, IMAGE)
    assert (layout.axes["extra.weight"][1] == layout.axes["first.bias"][0]).all()
    verify_layout(model, layout, IMAGE)


def test_dropout_does_not_disturb_the_self_test() -> None:
    dropout = nn.Sequential(nn.Dropout(0.9), nn.Dropout2d(0.9))
    assert resolved(lambda net, x: pooled(net.drop(x)), drop=dropout).groups == {"first": 4}


def test_an_unknown_operation_is_an_error_that_names_it() -> None:
    with pytest.raises(ModelError, match=r"'fft_fft2'.*algorithm that does not prune"):
        resolved(lambda net, x: pooled(torch.fft.fft2(x).real))


def test_writing_into_channels_is_an_error() -> None:
    def write(net: Net, x: Tensor) -> Tensor:
        x[:, 0] = 0
        return pooled(x)

    with pytest.raises(ModelError, match="'setitem'"):
        resolved(write)


def test_an_unknown_operation_on_the_input_is_none_of_our_business() -> None:
    class Spectrum(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.fft.fft2(x).real)

    layout = channel_layout(Spectrum(lambda net, x: pooled(x), 4), IMAGE)
    assert layout.groups == {"first": 4}


def test_the_self_test_refuses_a_model_that_counts_its_channels() -> None:
    model = Net(lambda net, x: pooled(x / x.shape[1]), 4)
    with pytest.raises(ModelError, match=r"Net with half of its channels removed differs .*eval mode"):
        verify_layout(model, channel_layout(model, IMAGE), IMAGE)


def test_the_self_test_refuses_a_model_that_does_not_run_without_its_channels() -> None:
    model = Net(lambda net, x: pooled(x.narrow(1, 0, 4)), 4)
    with pytest.raises(ModelError, match="does not run with half of its channels"):
        verify_layout(model, channel_layout(model, IMAGE), IMAGE)


def test_resolving_changes_nothing() -> None:
    torch.manual_seed(0)
    model = Net(lambda net, x: pooled(net.norm(net.second(x))), 4, norm=nn.BatchNorm2d(4)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    image, state = IMAGE.clone(), torch.get_rng_state()
    verify_layout(model, channel_layout(model, image), image)
    assert model.training
    assert (image == IMAGE).all()
    assert (torch.get_rng_state() == state).all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_same_architecture_has_the_same_digest_whatever_its_weights() -> None:
    def digest(seed: int, between: Callable[[Net, Tensor], Tensor]) -> str:
        torch.manual_seed(seed)
        return channel_layout(Net(between, 4), torch.randn(IMAGE.shape)).digest

    assert digest(0, lambda net, x: pooled(net.second(x))) == digest(1, lambda net, x: pooled(net.second(x)))
    assert digest(0, lambda net, x: pooled(net.second(x))) != digest(0, lambda net, x: pooled(net.second(x) + x))
