"""Formulas over elements, which a layer computes between its products: each of their operations is a pass over memory,
and all are one where PyTorch's compiler is let (Ansel et al. 2024, doi 10.1145/3620665.3640366).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar

import torch

from tunesmith.errors import InputError

Result = TypeVar("Result")
COMPILERS = ("g++", "clang++")

_settings = {"compile": False}


def kernel(formula: Callable[..., Result]) -> Callable[..., Result]:
    """A formula inside an autograd function, which runs compiled once `set_compile` has said so. Sizes are left open,
    so that another batch is no reason to compile again; another type, or a size of one, is."""

    @cache
    def compiled() -> Callable[..., Result]:
        return torch.compile(formula, dynamic=True)

    @wraps(formula)
    def run(*args: Any) -> Result:
        if not _settings["compile"]:
            return formula(*args)
        # Within an autograd function inputs still ask for gradients, which the compiler would look for.
        return compiled()(*(arg.detach() if isinstance(arg, torch.Tensor) else arg for arg in args))

    return run


def set_compile(wanted: bool, device: torch.device) -> None:
    """Whether kernels run compiled from now on, in this process.

    Raises:
        InputError: they should, on a CPU, and there is no C++ compiler.
    """
    if wanted and device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", ""), *COMPILERS))):
        raise InputError(
            "compile needs a C++ compiler, and neither g++ nor clang++ was found: install one, name it in the "
            "environment variable CXX, or leave compile out"
        )
    _settings["compile"] = wanted
