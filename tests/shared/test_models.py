import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from shared import torchvision_ops
from shared.errors import ConfigError
from shared.models import ZOO, build_model, example_input, input_shape
from shared.pruning import macs
from shared.torchvision_ops import torchvision


@pytest.mark.parametrize("name", [*ZOO, "mobilenet_v3_small"])
def test_every_model_maps_its_example_to_scores(name: str) -> None:
    options = {"classes": 7} if name in ZOO else {"classes": 7, "size": 32}
    example = example_input(name, options)
    assert example.shape == (2, *input_shape(name, options))
    assert build_model(name, options, seed=0).eval()(example).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("smallcnn", {"channels": 3, "size": 8, "width": 4}, (3, 8, 8)),
        ("digitscnn", {"size": 16}, (1, 16, 16)),
        ("lenet-small", {"size": 32}, (1, 32, 32)),
        ("lenet5", {"size": 32, "channels": 3}, (3, 32, 32)),
        ("har1d", {"channels": 3, "length": 50}, (3, 50)),
        ("resnet18", {"channels": 1, "stem": "imagenet", "size": 64}, (1, 64, 64)),
        ("mobilenet_v2", {"channels": 1, "stem": "imagenet", "size": 64}, (1, 64, 64)),
    ],
)
def test_options_change_shapes(name: str, options: dict[str, int | str], shape: tuple[int, ...]) -> None:
    assert input_shape(name, options) == shape
    build_model(name, options, seed=0).eval()(example_input(name, options))


def test_sizes_are_those_the_documents_state() -> None:
    def parameters(name: str, **options: int | str) -> int:
        return sum(one.numel() for one in build_model(name, options, seed=0).parameters())

    assert parameters("digitscnn") == 38_370
    assert parameters("lenet-small") == 20_522
    assert parameters("lenet5") == 61_706
    assert parameters("resnet18") == 11_173_962
    assert parameters("resnet18", stem="imagenet", classes=1000) == 11_689_512


def test_the_small_stem_keeps_the_resolution() -> None:
    for name in ("resnet18", "mobilenet_v2"):
        small, large = (
            macs(build_model(name, {"stem": stem}, seed=0), torch.zeros(1, 3, 32, 32)) for stem in ("cifar", "imagenet")
        )
        assert small > 3 * large


def test_the_seed_alone_decides_and_global_randomness_is_left_alone() -> None:
    state = torch.get_rng_state()
    one, same, other = (build_model("digitscnn", {}, seed=seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["0.weight"], other["0.weight"])
    assert torch.equal(example_input("digitscnn", {}), example_input("digitscnn", {}))


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("digitcnn", {}, "unknown model 'digitcnn'; did you mean 'digitscnn'"),
        ("resnet19", {}, "did you mean 'resnet18'"),
        ("smallcnn", {"chanels": 1}, "no option 'chanels'; did you mean 'channels'.; it takes channels, size"),
        ("smallcnn", {"classes": "ten"}, "option classes = 'ten' .* whole number"),
        ("smallcnn", {"classes": True}, "option classes = True"),
        ("smallcnn", {"width": 0}, "option width = 0 .* at least 1"),
        ("resnet18", {"stem": "mnist"}, "stem = 'mnist' .* one of 'cifar', 'imagenet'"),
        ("lenet5", {"size": 4}, "size = 4 is too small"),
        ("vgg11", {"channels": 1}, "vgg11 takes images of 3 channels, not 1"),
        ("elsewhere:net", {}, "cannot import 'elsewhere'"),
    ],
)
def test_what_cannot_be_built_is_refused_with_a_remedy(name: str, options: dict[str, int | str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build_model(name, options, seed=0)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's module with models of their own."""
    (tmp_path / "own_models.py").write_text(
        "from torch import nn\n"
        "def net(width=4):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(12, width), nn.ReLU(), nn.Linear(width, 2))\n"
        "net.input_shape = (3, 4)\n"
        "def bare():\n    return nn.Linear(3, 2)\n"
        "def wrong():\n    return 3\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_models", raising=False)
    importlib.invalidate_caches()
    return "own_models"


def test_your_own_model(own: str) -> None:
    model = build_model(f"{own}:net", {"width": 6}, seed=0)
    assert model(example_input(f"{own}:net", {"width": 6})).shape == (2, 2)
    assert model[1].weight.shape == (6, 12)
    same = build_model(f"{own}:net", {"width": 6, "input_shape": (12,)}, seed=0)
    assert torch.equal(same[1].weight, model[1].weight)
    assert input_shape(f"{own}:net", {"input_shape": (12,)}) == (12,)
    assert input_shape(f"{own}:bare", {"input_shape": (3,)}) == (3,)


def test_faults_of_your_own_model_are_named(own: str) -> None:
    with pytest.raises(ConfigError, match="input shape of own_models:bare is None; give the callable an attribute"):
        input_shape(f"{own}:bare", {})
    with pytest.raises(ConfigError, match=r"input shape of own_models:net is \(3, 0\)"):
        input_shape(f"{own}:net", {"input_shape": (3, 0)})
    with pytest.raises(ConfigError, match="gave a int, not a torch"):
        build_model(f"{own}:wrong", {}, seed=0)
    with pytest.raises(ConfigError, match="is a int, not a callable"):
        build_model(f"{own}:number", {}, seed=0)
    with pytest.raises(ConfigError, match=r"no option 'depth'.*; it takes width"):
        build_model(f"{own}:net", {"depth": 2}, seed=0)


# --- torchvision ----------------------------------------------------------------------------------------------------


def test_torchvision_is_usable_whatever_its_compiled_operators_do() -> None:
    assert isinstance(torchvision().models.squeezenet1_1(weights=None, num_classes=3), nn.Module)
    assert torchvision() is sys.modules["torchvision"]


class Import:
    """Stands in for `importlib.import_module`: gives or raises one after the other."""

    def __init__(self, *outcomes: object) -> None:
        self.outcomes = list(outcomes)

    def __call__(self, name: str) -> object:
        assert name == "torchvision"
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    monkeypatch.setattr(torch.library, "define", lambda name, schema: names.append(name))
    return names


def test_nothing_is_declared_where_the_operators_load(monkeypatch: pytest.MonkeyPatch, declared: list[str]) -> None:
    monkeypatch.setattr(torchvision_ops.importlib, "import_module", Import("the package"))
    assert torchvision_ops.torchvision.__wrapped__() == "the package"
    assert declared == []


def test_the_operators_are_declared_where_they_do_not_load(
    monkeypatch: pytest.MonkeyPatch, declared: list[str]
) -> None:
    missing = RuntimeError("operator torchvision::nms does not exist")
    monkeypatch.setattr(torchvision_ops.importlib, "import_module", Import(missing, "the package"))
    assert torchvision_ops.torchvision.__wrapped__() == "the package"
    assert declared == ["torchvision::nms", "torchvision::qnms"]


def test_another_failure_of_torchvision_is_not_hidden(monkeypatch: pytest.MonkeyPatch, declared: list[str]) -> None:
    monkeypatch.setattr(torchvision_ops.importlib, "import_module", Import(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        torchvision_ops.torchvision.__wrapped__()
    assert declared == []


def test_a_missing_torchvision_is_a_setting_to_correct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_ops.importlib, "import_module", Import(ModuleNotFoundError("No module")))
    with pytest.raises(ConfigError, match=r"install talaria\[train\]"):
        torchvision_ops.torchvision.__wrapped__()
