"""One cell of the matrix: a method on a tiny model of a real class, from its first step to its merged weights."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.parity import test_encdec, test_packed
from tests.parity.tiny import DECODERS, ENCODER_DECODERS, make_network
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from tunesmith.config import TuneConfig
from tunesmith.data.pack import pack
from tunesmith.errors import InputError
from tunesmith.methods.apply import find_rates
from tunesmith.methods.method import Method
from tunesmith.methods.table import METHODS
from tunesmith.models.load import Network, load_network
from tunesmith.models.packed import packed_logits
from tunesmith.models.sparse import is_sparse
from tunesmith.models.wrap import merge
from tunesmith.records import Task, TokenizedExample
from tunesmith.train.checkpoint import State, find_newest, load_checkpoint, save_checkpoint
from tunesmith.train.loop import trainable
from tunesmith.train.objective import judged_losses
from tunesmith.train.optim import make_optimizer

# What a method may train, by words in the parameter's name; "lora_" where nothing is said. Heads come on top.
TRAINED = {
    "full": ("",),
    "last-layers": (".2.", "norm", "ln_f", "decoder.layers.1."),
    "first-layers": (".0.",),
    "chosen": (".1.",),
    "attention": ("att", "Attention.", "Wqkv", "Wo", "q_lin", "k_lin", "v_lin", "out_lin"),
    "cross-attention": ("EncDecAttention.", "encoder_attn."),
    "embeddings": ("word_embeddings", "embed_tokens", "wte", "tok_embeddings", "shared"),
    "sparse": ("sparse_values",),
    "bitfit": ("bias",),
    "norms": ("norm", "LayerNorm", "ln_"),
    "head-only": ("lm_head",),
    "bottleneck": ("bottleneck",),
    "houlsby": ("bottleneck",),
    "parallel": ("bottleneck",),
    "prompt": ("prompt_encoder",),
    "p-tuning": ("prompt_encoder",),
    "prefix": ("prompt_encoder",),
    "hra": ("hra_",),
    "pissa": ("lora_",),
    "eva": ("lora_",),
    "adalora": ("lora_",),
    "olora": ("lora_",),
    "dora": ("lora_",),
    "rslora": ("lora_",),
    "lora-plus": ("lora_",),
    "loha": ("hada_",),
    "unilora": ("unilora_",),
    "vblora": ("vblora_",),
}
HEADS = ("pooler", "classifier", "score", "head.")
# Nothing there to train (no biases; a head that is the input embedding), or no layers of its own for keys and values.
IMPOSSIBLE = {
    ("llama", "bitfit"): "has no bias vectors",
    ("qwen3", "bitfit"): "has no bias vectors",
    ("gemma3", "bitfit"): "has no bias vectors",
    ("modernbert", "bitfit"): "has no bias vectors",
    ("gpt2", "head-only"): "tied weights",
    ("gemma3", "head-only"): "tied weights",
    ("t5", "bitfit"): "has no bias vectors",
    ("t5", "head-only"): "tied weights",
    ("bart", "head-only"): "tied weights",
    ("marian", "head-only"): "tied weights",
    ("modernbert", "ia3"): "Name them with --target-modules",
}
PLAIN_PEFT_WARNS = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Failed to load the CUDA extension:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting boft_n_butterfly_factor to 1:UserWarning"),
]
STEPS, RATE = 4, 1e-3


def refusal_of(kind: str, method: Method) -> str:
    """What the method says of a kind of model that it cannot change; empty when it can."""
    if kind == "gpt2" and not method.transposed:
        return "keep it the other way round (Conv1D)"
    if kind not in ENCODER_DECODERS and method.name == "cross-attention":
        return "as only an encoder-decoder has"
    if kind not in DECODERS and method.name == "prefix":
        return "puts keys and values before those of a decoder"
    if kind in ENCODER_DECODERS and method.virtual:
        return "an encoder-decoder reads two"
    return IMPOSSIBLE.get((kind, method.name), "")


def task_of(kind: str) -> Task:
    return "generation" if kind in DECODERS or kind in ENCODER_DECODERS else "classification"


def auto_of(kind: str) -> Any:
    if kind in ENCODER_DECODERS:
        return AutoModelForSeq2SeqLM
    return AutoModelForCausalLM if kind in DECODERS else AutoModelForSequenceClassification


def make_rows(network: Network) -> list[TokenizedExample]:
    if network.model.config.is_encoder_decoder:
        return test_encdec.make_rows(network)
    return test_packed.make_rows(network.task)


def padded_loss(kind: str, plain: Any, rows: list[TokenizedExample]) -> torch.Tensor:
    if kind in ENCODER_DECODERS:
        return test_encdec.padded_loss(plain, rows)
    return test_packed.padded_loss(plain, rows, task_of(kind))


@cache
def _home(kind: str) -> TemporaryDirectory[str]:
    home = TemporaryDirectory()
    make_network(kind, task_of(kind), Path(home.name))
    return home


def fresh(kind: str) -> Network:
    classes = ("a", "b", "c") if task_of(kind) == "classification" else ()
    network = load_network(_home(kind).name, task_of(kind), classes)
    network.model.eval()
    return network


def small(method: Method) -> TuneConfig:
    given = {"model": "m", "data": "d", "method": method.name, "precision": "fp32", "trained_parameters": "*.1.*"}
    sizes = {"num_last_layers": 1, "num_first_layers": 1, "bottleneck_size": 4, "num_virtual_tokens": 3, "lora_r": 2}
    return TuneConfig.read(given=given | sizes)


def put_under(kind: str, method: Method) -> Network:
    """In evaluation mode: some adapters draw random numbers while they train."""
    network = fresh(kind)
    torch.manual_seed(0)
    method.apply(network, small(method))
    if method.inform is not None:
        method.inform(network, small(method), make_rows(network), torch.float32)
    network.model.eval()
    return network


def logits_of(network: Network) -> torch.Tensor:
    rows = make_rows(network)
    with torch.no_grad():
        return packed_logits(network, pack(rows, network.num_virtual, network.is_decoder))


def train(network: Network, state: State, steps: int) -> list[float]:
    rows, losses = make_rows(network), []
    for _ in range(steps):
        state.optimizer.zero_grad()
        loss = judged_losses(network, pack(rows, network.num_virtual, network.is_decoder))[0].mean()
        loss.backward()
        state.optimizer.step()
        losses.append(loss.item())
    return losses


def state_of(network: Network, method: Method) -> State:
    parameters = trainable(network)
    rates = find_rates(network, method, small(method))
    optimizer = make_optimizer(parameters, RATE, 0.0, "adamw", rates)
    if method.attend is not None:
        method.attend(network, small(method), optimizer, STEPS + 1)
    return State(parameters, optimizer, torch.device("cpu"))


def check(kind: str, method: Method, folder: Path) -> None:
    """Everything that a row of the table promises, on one kind of model."""
    network = put_under(kind, method)
    base = logits_of(fresh(kind))
    if method.starts_equal:
        torch.testing.assert_close(logits_of(network), base, atol=2e-5, rtol=1e-5)
    state = state_of(network, method)
    _only_what_is_named(method, [name for name, _ in state.parameters])
    before = {name: parameter.clone() for name, parameter in network.model.named_parameters()}
    losses = train(network, state, STEPS)
    assert losses[-1] < losses[0]
    _only_trained_ones_changed(before, network.model)
    tuned = logits_of(network)
    save_checkpoint(folder / "checkpoints", state)
    run = folder / "run"
    run.mkdir()
    method.saving.save(network, run)
    _resumes(kind, method, folder / "checkpoints", train(network, state, 1), logits_of(network))
    if not method.saving.whole:
        again = fresh(kind)
        method.saving.restore(again, run)  # type: ignore[misc]
        again.model.eval()
        torch.testing.assert_close(logits_of(again), tuned, atol=1e-5, rtol=1e-5)
    _plain_libraries_agree(kind, method, run, tuned)
    if method.merges:
        merged = fresh(kind)
        merged.model = merge(merged.model, run)
        torch.testing.assert_close(logits_of(merged), tuned, atol=2e-5, rtol=1e-4)


def _only_what_is_named(method: Method, names: list[str]) -> None:
    words = TRAINED.get(method.name, (f"{method.name}_",))
    own = [name for name in names if any(word in name for word in words)]
    assert own or method.name == "head-only"
    assert [name for name in names if name not in own and not any(head in name for head in HEADS)] == []


def _only_trained_ones_changed(before: dict[str, torch.Tensor], model: PreTrainedModel) -> None:
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name in changed - trained if not _only_there(model, name, before[name])} == set()
    # Without a gradient: keys' biases (softmax ignores them), factors of biases that are zero, rows' unseen words. At
    # zero again: a layer from which AdaLoRA took all ranks.
    still = {name for name in trained - changed if not any(part in name for part in STILL)}
    assert not still, sorted(still)


def _only_there(model: PreTrainedModel, name: str, before: torch.Tensor) -> bool:
    """Whether a matrix of which a few weights are trained has changed in these alone."""
    module = model.get_submodule(name.rpartition(".")[0])
    if not is_sparse(module):
        return False
    changed = (model.get_parameter(name) != before).view(-1).nonzero().view(-1)
    return bool(torch.isin(changed, module.sparse_places).all())  # type: ignore[arg-type]


STILL = (
    "key.bias",
    "k_lin.bias",
    "k_proj.bias",
    "k_proj.glora_C",
    "k_proj.glora_E",
    "key.glora_C",
    "key.glora_E",
    "k_lin.glora_C",
    "glora_D",
    "lora_E",
    "position",
    "embeddings",
)


def _resumes(kind: str, method: Method, checkpoints: Path, losses: list[float], logits: torch.Tensor) -> None:
    """The step after the checkpoint, taken by a training that was read from it: the same to the bit."""
    network = put_under(kind, method)
    state = state_of(network, method)
    newest = find_newest(checkpoints)
    assert newest is not None
    load_checkpoint(newest, state)
    assert train(network, state, 1) == losses
    assert torch.equal(logits_of(network), logits)


def _plain(kind: str, method: Method, run: Path, trainable: bool) -> Any:
    """The saved run as transformers and peft alone read it."""
    auto = auto_of(kind)
    if method.saving.whole:
        return auto.from_pretrained(run, attn_implementation="eager").eval()
    base = auto.from_pretrained(_home(kind).name, attn_implementation="eager")
    return PeftModel.from_pretrained(base, run, is_trainable=trainable).eval()


def _plain_libraries_agree(kind: str, method: Method, run: Path, tuned: torch.Tensor) -> None:
    if method.name in ("bottleneck", "houlsby", "parallel"):  # peft has none
        return
    plain, rows = _plain(kind, method, run, trainable=False), make_rows(fresh(kind))
    rows = [rows[index] for index in pack(rows, share=kind in DECODERS).rows]
    with torch.no_grad():
        every = torch.cat([_judged_by(plain, kind, row) for row in rows])
    torch.testing.assert_close(every, tuned, atol=2e-5, rtol=1e-4)


def _judged_by(plain: Any, kind: str, row: TokenizedExample) -> torch.Tensor:
    """(N, V) or (1, C): what the model alone says of one row, where it is judged."""
    if kind in ENCODER_DECODERS:
        source, target = test_encdec.split(row)
        shifted = torch.tensor([[row.start, *target[:-1]]])
        return plain(input_ids=torch.tensor([source]), decoder_input_ids=shifted).logits[0]  # type: ignore[no-any-return]
    logits: torch.Tensor = plain(input_ids=torch.tensor([row.input_ids])).logits[0]
    if kind not in DECODERS:
        return logits[None]
    return logits[logits.shape[0] - len(row.input_ids) :][_places(row.trained)]


def _places(trained: tuple[bool, ...]) -> list[int]:
    """Where the next token is a trained one."""
    return [place - 1 for place, taught in enumerate(trained) if taught]


def gradients(kind: str, method: Method, folder: Path) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Of each adapter weight: by our packed pass, and by plain peft on plain transformers with padded rows."""
    network = put_under(kind, method)
    train(network, state_of(network, method), 1)  # away from zero
    method.saving.save(network, folder)
    network.root.zero_grad()
    rows = make_rows(network)
    judged_losses(network, pack(rows, network.num_virtual, network.is_decoder))[0].mean().backward()
    plain = _plain(kind, method, folder, trainable=not method.virtual)
    if method.virtual:  # PEFT refuses to train what was loaded
        plain.prompt_encoder.requires_grad_(True)
    padded_loss(kind, plain, rows).backward()
    theirs = {name: p.grad for name, p in plain.named_parameters() if p.requires_grad}
    for name, parameter in trainable(network):
        assert parameter.grad is not None
        yield name, parameter.grad, theirs[name]


DECODER_KINDS = ("llama", "qwen3", "gemma3", "gpt2")
ENCODER_KINDS = ("bert", "roberta", "distilbert", "modernbert")
ENCODER_DECODER_KINDS = ("t5", "bart", "marian")


def cells(kinds: tuple[str, ...], every: int = 1) -> list[Any]:
    """Every pair. Each `every`-th method is always asked, of one kind after the other; the other pairs are soaked."""
    asked = {(kinds[turn % len(kinds)], name) for turn, name in enumerate(list(METHODS)[::every])}
    return [
        pytest.param(kind, name, marks=() if (kind, name) in asked else pytest.mark.soak)
        for name in METHODS
        for kind in kinds
    ]


def judge(kind: str, name: str, folder: Path) -> None:
    refusal = refusal_of(kind, METHODS[name])
    if not refusal:
        return check(kind, METHODS[name], folder)
    with pytest.raises(InputError) as caught:
        put_under(kind, METHODS[name])
    assert refusal in str(caught.value)
