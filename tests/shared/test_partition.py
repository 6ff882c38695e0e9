import pytest
import torch
from torch import nn

from shared.errors import ConfigError, ModelError
from shared.models import build_model
from shared.partition import batch_norm_names, head_names, names_under, representation_names


class Net(nn.Module):
    """Paths that a search by substring would confuse."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential()
        self.layer1.add_module("conv1", nn.Conv2d(4, 4, 3, bias=False))
        self.layer1.add_module("bn", nn.BatchNorm2d(4, affine=False))
        self.fc1 = nn.Linear(4, 4)
        self.fc10 = nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.ones(2))


def test_paths_match_by_component() -> None:
    model = Net()
    assert names_under(model, ["fc1"]) == {"fc1.weight", "fc1.bias"}
    assert names_under(model, ["conv1"]) == {"conv1.weight", "conv1.bias"}
    assert names_under(model, ["layer1.conv1"]) == {"layer1.conv1.weight"}
    assert names_under(model, ["scale"]) == {"scale"}
    assert names_under(model, ["fc1", "layer1.conv1"]) == {"fc1.weight", "fc1.bias", "layer1.conv1.weight"}
    assert names_under(model, []) == frozenset()


def test_a_path_without_state_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"under 'fc11'; did you mean 'fc1(0)?'"):
        names_under(Net(), ["fc11"])


def test_the_head_is_the_last_linear_layer_or_what_is_named() -> None:
    model = Net()
    assert head_names(model) == {"fc10.weight", "fc10.bias"}
    assert head_names(model, ["fc1", "fc10"]) == {"fc1.weight", "fc1.bias", "fc10.weight", "fc10.bias"}


def test_the_head_of_a_fully_convolutional_model_is_its_last_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 10, 1), nn.Flatten())
    assert head_names(model) == {"2.weight", "2.bias"}


def test_a_model_without_layers_has_no_head() -> None:
    with pytest.raises(ModelError, match="ReLU has neither a linear layer nor a convolution"):
        head_names(nn.ReLU())


def test_the_representation_is_what_comes_before_the_first_linear_layer() -> None:
    model = Net()  # the root's own parameter is registered before its modules
    assert representation_names(model) == set(model.state_dict()) - names_under(model, ["fc1", "fc10"])
    lenet = build_model("lenet-small", {}, seed=0)
    assert representation_names(lenet) == {"0.weight", "0.bias", "3.weight", "3.bias"}
    resnet = build_model("resnet18", {}, seed=0)
    assert set(resnet.state_dict()) - representation_names(resnet) == {"fc.weight", "fc.bias"}


def test_the_representation_of_a_fully_convolutional_model_is_all_but_its_last_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 10, 1), nn.Flatten())
    assert representation_names(model) == {"0.weight", "0.bias"}


def test_a_model_that_begins_with_a_linear_layer_has_no_representation_by_default() -> None:
    with pytest.raises(ModelError, match=r"no layers before its first linear one.*`local`"):
        representation_names(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))


def test_batch_norm_names_are_those_of_the_layers_whatever_they_are_called() -> None:
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    assert batch_norm_names(Net()) == {f"bn.{n}" for n in statistics | {"weight", "bias"}} | {
        f"layer1.bn.{n}" for n in statistics
    }
    assert batch_norm_names(nn.BatchNorm1d(3, affine=False)) == statistics


def test_both_names_of_a_shared_batch_norm_count() -> None:
    layer = nn.BatchNorm1d(3, affine=False, track_running_stats=True)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert batch_norm_names(model) == set(model.state_dict())
