"""What methods ask the training rows: against plain transformers, one row at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.lora import Linear as LoraLinear
from tests.methods.test_methods import config
from tests.parity.test_packed import make_rows, padded_loss
from tests.parity.tiny import make_model, make_network

from tunesmith.data.pack import pack
from tunesmith.errors import InputError
from tunesmith.methods.informed import main_directions
from tunesmith.methods.table import METHODS
from tunesmith.models.load import Network
from tunesmith.models.sparse import is_sparse
from tunesmith.train.objective import judged_losses

SHARE = 0.02


def sparse(folder: Path, kind: str = "bert", task: Any = "classification", **options: Any) -> Network:
    network = make_network(kind, task, folder)
    settings = config("sparse", method_options={f"sparse.{key}": value for key, value in options.items()})
    METHODS["sparse"].apply(network, settings)
    METHODS["sparse"].inform(network, settings, make_rows(task), torch.float32)  # type: ignore[misc]
    return network


def plain_squares(kind: str, task: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Of each weight, the squared gradients of every row's loss."""
    model = make_model(kind, task)
    sums = {name: np.zeros(p.shape) for name, p in model.named_parameters()}
    for row in make_rows(task):
        model.zero_grad()
        judged = 1 if task == "classification" else sum(row.trained)
        (padded_loss(model, [row], task) * judged).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                sums[name] += parameter.grad.double().numpy() ** 2
    return sums


def places_of(network: Network) -> dict[str, set[int]]:
    named = network.model.named_modules()
    return {f"{name}.weight": set(part.sparse_places.tolist()) for name, part in named if is_sparse(part)}


@pytest.mark.parametrize(("kind", "task"), [("bert", "classification"), ("gpt2", "generation")])
def test_the_weights_with_most_information_are_freed(kind: str, task: Any, tmp_path: Path) -> None:
    network = sparse(tmp_path, kind, task, share=SHARE)
    found, squares = places_of(network), plain_squares(kind, task)
    linears = {
        f"{name}.weight" for name, part in network.model.named_modules() if type(part).__name__ in ("Linear", "Conv1D")
    }
    blocks = {name: squares[name].ravel() for name in linears if ".layer." in name or ".h." in name}
    count = sum(max(1, round(SHARE * len(each))) for each in blocks.values())
    assert sum(map(len, found.values())) == count
    least = np.sort(np.concatenate(list(blocks.values())))[-count]
    for name, each in blocks.items():
        surely = set(np.flatnonzero(each > least * (1 + 1e-3)).tolist())
        perhaps = set(np.flatnonzero(each > least * (1 - 1e-3)).tolist())
        assert surely <= found.get(name, set()) <= perhaps


def test_the_largest_weights_are_freed(tmp_path: Path) -> None:
    network = sparse(tmp_path, by="magnitude", share=SHARE)
    model = make_model("bert", "classification")
    for name, places in places_of(network).items():
        sizes = model.get_parameter(name).detach().abs().view(-1).numpy()
        assert places == set(np.argsort(sizes)[-len(places) :].tolist())


@pytest.mark.parametrize(("kind", "task"), [("bert", "classification"), ("gpt2", "generation")])
def test_their_gradients_are_those_of_the_whole_matrix(kind: str, task: Any, tmp_path: Path) -> None:
    network, rows = sparse(tmp_path, kind, task, by="random", share=0.1), make_rows(task)
    judged_losses(network, pack(rows))[0].mean().backward()
    plain = make_model(kind, task)
    padded_loss(plain, rows, task).backward()
    for name, part in network.model.named_modules():
        if is_sparse(part):
            whole = plain.get_parameter(f"{name}.weight").grad
            assert whole is not None
            torch.testing.assert_close(
                part.sparse_values.grad, whole.view(-1)[part.sparse_places], rtol=1e-4, atol=1e-6
            )  # type: ignore[union-attr, index]


@pytest.mark.parametrize(("options", "words"), [({"by": "luck"}, "one of fisher"), ({"share": 2}, "such as 0.01")])
def test_what_makes_no_sense_is_refused(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        sparse(tmp_path, **options)


def test_directions_are_those_of_the_singular_vectors(tmp_path: Path) -> None:
    """The space they span and their order, against numpy on all inputs at once."""
    network = make_network("llama", "generation", tmp_path)
    METHODS["lora"].apply(network, config("lora"))
    layers = [part for part in network.root.modules() if isinstance(part, LoraLinear)][:4]
    inputs: dict[torch.nn.Module, list[np.ndarray[Any, Any]]] = {layer: [] for layer in layers}
    hooks = [
        layer.register_forward_pre_hook(lambda layer, x: inputs[layer].append(x[0].detach()[0].double().numpy()))
        for layer in layers
    ]
    rows, rank = make_rows("generation"), 3
    for row in rows:
        judged_losses(network, pack([row]))
    for hook in hooks:
        hook.remove()
    for layer, found in zip(layers, main_directions(network, layers, rank, rows, torch.float32), strict=True):
        every = np.concatenate(inputs[layer])
        _, sizes, exact = np.linalg.svd(every, full_matrices=False)
        caught = np.linalg.norm(every @ found.double().numpy().T) ** 2
        assert caught >= 0.97 * (sizes[:rank] ** 2).sum()
        assert abs(float(found[0].double().numpy() @ exact[0])) > 0.99
        np.testing.assert_allclose(found.numpy() @ found.numpy().T, np.eye(rank), atol=1e-5)
