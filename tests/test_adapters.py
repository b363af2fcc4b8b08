"""Several runs as one model: each says what it says alone, and together they say what plain PEFT says of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import tunesmith
from tests.methods.test_methods import tokenized
from tests.test_export import make_run
from tunesmith import cli
from tunesmith.config import TuneConfig
from tunesmith.data.pack import pack
from tunesmith.errors import InputError
from tunesmith.methods.table import find_method
from tunesmith.models.load import Network, load_network
from tunesmith.models.packed import packed_logits
from tunesmith.runs.adapters import Adapters, load_adapters
from tunesmith.runs.run import Run


def logits_of(network: Network) -> torch.Tensor:
    with torch.no_grad():
        return packed_logits(network, pack(tokenized(network, network.task)[:4]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def runs(folder: Path) -> list[Run]:
    """Adapters of several ranks and kinds that PEFT counts as one; the last has fewer layers."""
    made = [make_run("llama", "generation", method, folder, seed=seed) for seed, method in enumerate(("lora", "dora"))]
    made.append(make_run("llama", "generation", "pissa", folder, lora_r=4))
    return [*made, make_run("llama", "generation", "rslora", folder, target_modules="q_proj")]


@pytest.fixture(scope="module")
def adapters(runs: list[Run]) -> Adapters:
    return load_adapters({str(number): run.folder for number, run in enumerate(runs)})


def test_each_run_says_what_it_says_alone(adapters: Adapters, runs: list[Run], folder: Path) -> None:
    base = load_network(str(folder / "base-llama"), "generation")
    base.model.eval()
    said = []
    for number in (2, 0, 3, 1, 0):
        adapters.use(str(number))
        said.append(logits_of(adapters.network))
        torch.testing.assert_close(said[-1], logits_of(Run.open(runs[number].folder).network), atol=0, rtol=0)
    assert not torch.allclose(said[0], said[1], atol=1e-3)
    with adapters.using() as network:
        torch.testing.assert_close(logits_of(network), logits_of(base), atol=0, rtol=0)
    assert adapters.in_use == ("0",)
    torch.testing.assert_close(logits_of(adapters.network), said[1], atol=0, rtol=0)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # plain PEFT's own
@pytest.mark.parametrize("names", ["02", "01", "031"])
def test_together_they_say_what_plain_peft_says(names: str, adapters: Adapters, runs: list[Run], folder: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder / "base-llama")
    wrapped = PeftModel.from_pretrained(plain, runs[int(names[0])].folder, adapter_name=f"n{names[0]}")
    for name in names[1:]:
        wrapped.load_adapter(runs[int(name)].folder, f"n{name}")
    wrapped.base_model.set_adapter([f"n{name}" for name in names])
    wrapped.eval()
    with adapters.using(*names) as network, torch.no_grad():
        for row in tokenized(network, "generation")[:4]:
            theirs = wrapped(input_ids=torch.tensor([row.input_ids])).logits[0]
            judged = [place - 1 for place, trained in enumerate(row.trained) if trained]
            torch.testing.assert_close(packed_logits(network, pack([row])), theirs[judged], atol=2e-5, rtol=1e-4)
    with adapters.using(names[0]):
        one = logits_of(adapters.network)
    with adapters.using(*names):
        assert not torch.allclose(logits_of(adapters.network), one, atol=1e-3)


def test_heads_and_class_names_go_with_the_run(tmp_path: Path) -> None:
    made = [make_run("bert", "classification", "lora", tmp_path, seed=seed) for seed in range(2)]
    adapters = load_adapters([run.folder for run in made])
    for run in (*made, made[0]):
        adapters.use(run.folder.name)
        torch.testing.assert_close(logits_of(adapters.network), logits_of(Run.open(run.folder).network), atol=0, rtol=0)
    alone = tunesmith.predict(made[0].folder, ["good", "bad"])
    assert tunesmith.predict(adapters, ["good", "bad"]) == alone
    for names in ((), [run.folder.name for run in made]):
        with pytest.raises(InputError, match="each run has a head of its own for classification: use one of"):
            adapters.use(*names)


def test_adapters_beside_packed_matrices(tmp_path: Path) -> None:
    made = [
        make_run("llama", "generation", method, tmp_path, quantization="nf4", seed=seed)
        for seed, method in enumerate(("lora", "dora"))
    ]
    adapters = load_adapters([run.folder for run in made])
    for run in reversed(made):
        adapters.use(run.folder.name)
        torch.testing.assert_close(logits_of(adapters.network), logits_of(Run.open(run.folder).network), atol=0, rtol=0)
    whole = make_run("llama", "generation", "lora", tmp_path)
    with pytest.raises(InputError, match=r"differ in their quantization \(None, nf4\)"):
        load_adapters([made[0].folder, whole.folder])


def test_in_the_terminal_adapters_take_turns(
    runs: list[Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = (run.folder for run in runs[:2])
    said = iter(["w5", f"/use {other.name}", "/new", "w5", f"/use {one.name} {other.name}", "/use nobody"])

    def answer(_: str) -> str:
        try:
            return next(said)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)
    assert cli.run(["chat", str(one), "--also", str(other), "--max-new-tokens", "8"]) == 0
    shown = capsys.readouterr()
    alone = [tunesmith.predict(run, ["w5"], max_new_tokens=8)[0]["answer"] for run in (one, other)]
    assert [line.strip() for line in shown.out.splitlines()] == [text.strip() for text in alone]
    assert f"{one.name} + {other.name} answers" in shown.err
    assert "unknown adapter 'nobody'" in shown.err


def test_what_cannot_share_a_model_is_refused(runs: list[Run], folder: Path, tmp_path: Path) -> None:
    first = runs[0].folder
    with pytest.raises(InputError, match=r"full is no adapter of PEFT's that changes layers.*export --combine"):
        load_adapters([first, make_run("llama", "generation", "full", folder).folder])
    with pytest.raises(InputError, match=r"differ in their kind of adapter \(IA3, LORA\)"):
        load_adapters([first, make_run("llama", "generation", "ia3", folder).folder])
    with pytest.raises(InputError, match="of different base models or tasks"):
        load_adapters([first, make_run("gpt2", "generation", "lora", tmp_path).folder])
    with pytest.raises(InputError, match=r"two runs are called .*Give \{name: folder\}"):
        load_adapters([first, first])
    with pytest.raises(InputError, match="no runs given"):
        load_adapters([])
    with pytest.raises(InputError, match="unknown adapter 'plite': did you mean 'polite'"):
        load_adapters({"polite": first}).use("plite")


def test_a_further_adapter_names_the_run_that_it_stands_on(runs: list[Run]) -> None:
    """PEFT would put the base of that run there, beside which the further adapter says something else."""
    network = load_network(str(runs[0].folder), "generation")
    find_method("lora").apply(network, TuneConfig(model=str(runs[0].folder), data="rows"))
    (settings,) = network.wrapper.peft_config.values()  # type: ignore[union-attr]
    assert settings.base_model_name_or_path == str(runs[0].folder)
