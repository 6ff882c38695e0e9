"""The one way to torchvision: `torchvision()`.

torchvision 0.28 from the package index comes with a library of compiled operators that is built against CUDA. Beside a
CPU build of torch it does not load, and `import torchvision` fails with `operator torchvision::nms does not exist`: the
import attaches shape functions to two operators that nobody declared. Models, transforms and data sets need neither, so
they are declared here, without an implementation (calling them still fails), and the import is done again. Where the
library loads, the first import succeeds and nothing is declared.
"""

import functools
import importlib
from typing import Any

import torch

from shared.errors import ConfigError

SCHEMAS = {
    "torchvision::nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


@functools.cache
def torchvision() -> Any:
    """The torchvision package. Raises ConfigError where it is not installed."""
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        raise ConfigError(f"this needs torchvision ({error}); install talaria[train]") from error
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        for name, schema in SCHEMAS.items():
            torch.library.define(name, schema)
        return importlib.import_module("torchvision")
