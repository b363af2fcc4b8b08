"""Encoder-decoders from data to answers: tuned, saved, loaded again; and what assumes one stack of blocks."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM

from tests.models.test_checkpointing import with_dropout
from tests.parity.test_encdec import gap, make_rows, packed_loss, twin
from tests.parity.test_packed import gradients
from tests.parity.tiny import VOCABULARY, make_model, make_network, make_tokenizer
from tunesmith.config import PlanConfig, TuneConfig
from tunesmith.config_compare import CompareConfig
from tunesmith.config_export import ExportConfig
from tunesmith.data.pack import pack
from tunesmith.data.parts import load_split
from tunesmith.errors import InputError
from tunesmith.evaluation.predict import predict_file
from tunesmith.evaluation.systems import run_baseline
from tunesmith.evaluation.tasks import evaluate, predict_texts
from tunesmith.export import export
from tunesmith.models import embedding
from tunesmith.models.attention import unpacked
from tunesmith.models.checkpointing import checkpoint_blocks
from tunesmith.models.layers import find_layers, linear_names
from tunesmith.models.prefix import count_frozen
from tunesmith.planning import plan
from tunesmith.runs.run import Run
from tunesmith.tuning import tune

KINDS = ("t5", "bart", "bert2bert")


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Sources of some words, whose first two are the target."""
    draw = random.Random(0)
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for _ in range(60):
            words = [f"w{draw.randrange(5, VOCABULARY)}" for _ in range(draw.randrange(2, 8))]
            file.write(json.dumps({"source": " ".join(words), "target": " ".join(words[:2])}) + "\n")
    return str(path)


def saved(kind: str, folder: Path) -> str:
    model = make_model(kind, "generation")
    model.save_pretrained(folder)
    make_tokenizer(model.config.pad_token_id).save_pretrained(folder)
    return str(folder)


def config(model: str, data: str, output: Path, **more: object) -> TuneConfig:
    keys = {"num_train_epochs": 1, "per_device_train_batch_size": 16, "precision": "fp32", "device": "cpu"}
    return TuneConfig(**{**keys, "model": model, "data": data, "output": output, "check": False, **more})  # type: ignore[arg-type]


METHODS_OF_KINDS = [("t5", "full"), ("bart", "lora"), ("bert2bert", "bottleneck")]


@pytest.mark.parametrize(("kind", "method"), METHODS_OF_KINDS)
def test_a_run_comes_back_as_it_was_trained(kind: str, method: str, data: str, tmp_path: Path) -> None:
    settings = config(saved(kind, tmp_path / "model"), data, tmp_path / "run", method=method, source_prefix="w20 ")
    run = tune(settings, quiet=True)
    texts = ["w5 w6 w7", "w8", "w9 w10 w11 w12 w13"]
    said = predict_texts(run.network, texts, max_new_tokens=6)
    again = Run.open(tmp_path / "run")
    assert predict_texts(again.network, texts, max_new_tokens=6) == said
    assert evaluate(again.network, data, max_generated=4).num_rows == 60
    asked = predict_file(str(tmp_path / "run"), Path(data))
    assert set(asked[0]) == {"source", "target", "answer"}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_plain_peft_loads_the_adapter(kind: str, data: str, tmp_path: Path) -> None:
    base = saved(kind, tmp_path / "model")
    run = tune(config(base, data, tmp_path / "run", method="lora", learning_rate=0.1), quiet=True)
    adapter = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert adapter["task_type"] == "SEQ_2_SEQ_LM"
    plain = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(base), tmp_path / "run").eval()
    inputs = {"input_ids": torch.tensor([[5, 6, 7]]), "decoder_input_ids": torch.tensor([[2, 8]])}
    with torch.no_grad(), unpacked(run.network.model):
        torch.testing.assert_close(plain(**inputs).logits, run.network.model(**inputs).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_run_says_what_the_run_said(kind: str, data: str, tmp_path: Path) -> None:
    base = saved(kind, tmp_path / "model")
    run = tune(config(base, data, tmp_path / "run", method="lora", learning_rate=0.1), quiet=True)
    with unpacked(run.network.model):
        inputs = {"input_ids": torch.tensor([[5, 6, 7]]), "decoder_input_ids": torch.tensor([[2, 8]])}
        before = run.network.model.eval()(**inputs).logits.detach()
    found = export(ExportConfig.read(given={"runs": [tmp_path / "run"], "output": tmp_path / "merged"}))
    assert found.gap is not None
    assert found.gap < 1e-5
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(plain(**inputs).logits, before, atol=1e-4, rtol=1e-4)


def test_a_tuned_model_has_learned(data: str, tmp_path: Path) -> None:
    settings = config(saved("bart", tmp_path / "model"), data, tmp_path / "run", method="full", learning_rate=3e-3)
    run = tune(settings.model_copy(update={"num_train_epochs": 15.0}), quiet=True)
    losses = [point["validation_loss"] for point in run.outcome["curve"]]
    assert min(losses) < 0.75 * losses[0]


def test_virtual_tokens_are_refused(data: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="an encoder-decoder reads two"):
        tune(config(saved("t5", tmp_path / "model"), data, tmp_path / "run", method="prompt"), quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["t5", "t5-gated", "bart", "bert2bert"])
def test_blocks_that_run_twice_give_the_same(kind: str, tmp_path: Path) -> None:
    network = with_dropout(make_network(kind, "generation", tmp_path))
    network.model.train()
    batch = pack(make_rows(network))

    def step() -> list[torch.Tensor]:
        torch.manual_seed(5)
        network.model.zero_grad()
        loss = packed_loss(network, batch)
        loss.backward()
        return [loss.detach(), *gradients(network.model).values()]

    once = step()
    assert checkpoint_blocks(network) == len(find_layers(network.model))
    for ours, theirs in zip(step(), once, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("is_tied", [True, False])
def test_gradients_by_row_change_nothing(is_tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T5's two stacks and the model itself share one table; twice, so that a gradient not cleared would show. The head
    of plain T5 is that table too, and a head has a whole gradient."""
    monkeypatch.setattr(embedding, "SMALLEST_TABLE", 0)
    network = make_network("t5-gated", "generation", tmp_path)
    plain = twin(network, "t5-gated")
    for model in (network.model, plain):
        if not is_tied:
            model.lm_head.weight = torch.nn.Parameter(0.1 * model.lm_head.weight.detach().clone())
    embedding.use_row_gradients(network.model)
    is_by_row = isinstance(network.model.get_encoder().embed_tokens, embedding.RowGradientEmbedding)
    assert is_by_row != is_tied
    rows = make_rows(network)
    optimizer = torch.optim.SGD(network.model.parameters(), lr=0.0)
    for part in (rows, rows[:2]):
        assert gap(network, plain, pack(part), part) <= 3e-6
        embedding.clear_gradients(network.model, optimizer)


@pytest.mark.parametrize(("kind", "blocks"), [("t5", (2, 3)), ("bart", (3, 2)), ("bert2bert", (3, 3))])
def test_blocks_are_the_encoders_and_then_the_decoders(kind: str, blocks: tuple[int, int], tmp_path: Path) -> None:
    model = make_network(kind, "generation", tmp_path).model
    names = {id(module): name for name, module in model.named_modules()}
    of_half = ["decoder" if ".decoder." in f".{names[id(block)]}" else "encoder" for block in find_layers(model)]
    assert of_half == ["encoder"] * blocks[0] + ["decoder"] * blocks[1]
    of_cross = {"t5": "k", "bart": "k_proj", "bert2bert": "key"}[kind]
    assert of_cross in linear_names(model)


def test_nothing_is_taken_for_a_frozen_beginning(tmp_path: Path) -> None:
    network = make_network("bart", "generation", tmp_path)
    network.model.requires_grad_(False)
    assert count_frozen(network) == 0


def test_a_plan_traces_both_halves(data: str, tmp_path: Path) -> None:
    model = saved("t5", tmp_path / "model")
    keys = {"model": model, "data": data, "methods": ("full", "lora", "prompt"), "check": False, "device": "cpu"}
    full, lora, prompt = plan(PlanConfig(**keys))  # type: ignore[arg-type]
    assert full.trained == sum(p.numel() for p in make_model("t5", "generation").parameters())
    assert 0 < lora.trained < full.trained
    assert not prompt.fits


def test_the_model_as_it_came_is_a_baseline(data: str, tmp_path: Path) -> None:
    model = saved("bart", tmp_path / "model")
    keys = {"model": model, "data": data, "check": False, "max_generated": 4, "max_new_tokens": 5, "device": "cpu"}
    settings = CompareConfig(**keys, source_prefix="w20 ")  # type: ignore[arg-type]
    parts = load_split(settings)
    system, predictions = run_baseline("zero-shot", tmp_path, settings, parts)
    assert "rouge_l" in system.metrics or "rougeL" in system.metrics
    assert sum(output is not None for output in predictions.outputs) == 4
