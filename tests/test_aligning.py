"""From preferences, or a reward, to a model that writes what is preferred: tiny models, whole runs."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.faults.survival import digest
from tests.parity.tiny import make_model, make_tokenizer
from tunesmith import aligning, cli
from tunesmith.aligning import align
from tunesmith.config_align import OFFLINE, AlignConfig
from tunesmith.data import sources
from tunesmith.data.parts import split_examples
from tunesmith.errors import InputError
from tunesmith.methods.table import find_method
from tunesmith.models.generate import Decoding
from tunesmith.models.load import count_parameters
from tunesmith.rl.algorithms import TEACHERS
from tunesmith.rl.loop import Trials, _places, _tokens
from tunesmith.rl.rollout import Reference, Speaker, roll_out
from tunesmith.runs.run import Run
from tunesmith.train.loop import set_learning_rate, trainable
from tunesmith.train.progress import Progress

QUICK: dict[str, Any] = {
    "precision": "fp32",
    "device": "cpu",
    "check": False,
    "learning_rate": 1e-2,
    "lora_r": 4,
    "save_minutes": 1000,
    "method": "lora",
}
TRIAL: dict[str, Any] = QUICK | {
    "prompts_per_step": 6,
    "num_generations": 4,
    "max_new_tokens": 6,
    "per_device_train_batch_size": 3,
    "max_steps": 3,
    "eval_steps": 100,
}
REWARD = """
def sevens(prompts, answers):
    return [answer.split().count("w7") for answer in answers]

def nothing(prompts, answers):
    return [float("nan") for _ in answers]
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    make_model("llama", "generation").save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "judge.py").write_text(REWARD)
    return tmp_path / "base"


def ranked(num_rows: int = 60) -> list[dict[str, Any]]:
    """w7 is better than w8, and that than w9."""
    rng = random.Random(0)
    rows = []
    for index in range(num_rows):
        answers = [f"w{number} w{rng.randrange(10, 90)}" for number in (7, 8, 9)]
        rows.append({"prompt": f"w{5 + index} w{rng.randrange(5, 90)}", "answers": answers})
    return rows


def prompts(num_rows: int = 60) -> list[dict[str, Any]]:
    return [{"prompt": f"w{5 + index} w{90 - index}", "completion": "w5"} for index in range(num_rows)]


def run_on(rows: list[dict[str, Any]], base: Path, output: Path, settings: dict[str, Any]) -> Run:
    config = configure(base, output, settings)
    return align(config, split_examples(sources.load(rows, config.task), config), quiet=True)


def configure(base: Path, output: Path, settings: dict[str, Any]) -> AlignConfig:
    return AlignConfig.read(given={"model": str(base), "data": "rows", "output": output} | settings)


def log_lines(run: Run) -> list[dict[str, Any]]:
    return [line for line in run.metrics() if "objective/kl" in line]


# From choices


@pytest.mark.parametrize("algorithm", OFFLINE)
def test_every_rule_learns_what_is_preferred(algorithm: str, base: Path, tmp_path: Path) -> None:
    run = run_on(ranked(), base, tmp_path / "run", QUICK | {"algorithm": algorithm, "num_train_epochs": 4})
    first, *_, last = run.outcome["curve"]
    assert last["validation_loss"] < first["validation_loss"]
    assert last["validation_accuracy"] > (0.8 if algorithm == "kto" else 0.9)
    if algorithm in ("dpo", "robust-dpo"):
        assert first["validation_loss"] == pytest.approx(math.log(2), rel=1e-5), "nothing has moved yet"
    assert run.manifest["task"] == "generation", "it chats, and is exported, as any model that writes"
    assert Run.open(run.folder).network.task == "generation"


def test_judged_answers_suffice_for_kto(base: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": row["prompt"], "completion": row["answers"][place], "label": place == 0}
        for index, row in enumerate(ranked(80))
        for place in (0, 2)[index % 2 :][:1]
    ]
    run = run_on(rows, base, tmp_path / "run", QUICK | {"algorithm": "kto", "num_train_epochs": 4})
    first, *_, last = run.outcome["curve"]
    assert first["validation_loss"] == pytest.approx(0.5, abs=1e-5)
    assert last["validation_loss"] < 0.47
    with pytest.raises(InputError, match="dpo learns from"):
        run_on(rows, base, tmp_path / "other", QUICK | {"algorithm": "dpo"})


def test_a_run_of_choices_goes_on_to_the_bit(base: Path, tmp_path: Path) -> None:
    settings = QUICK | {"algorithm": "dpo", "save_steps": 2, "max_steps": 6, "method": "full", "learning_rate": 1e-3}
    whole = run_on(ranked(), base, tmp_path / "whole", settings)
    cut = tmp_path / "cut"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunesmith.tuning._save", _break_off)
        with pytest.raises(RuntimeError, match="broken off"):
            run_on(ranked(), base, cut, settings)
    for checkpoint in (cut / "checkpoints").glob("step-[56]"):
        _remove(checkpoint)
    again = run_on(ranked(), base, cut, settings | {"resume": True})
    assert digest(again.folder) == digest(whole.folder)


def _break_off(*_: object) -> None:
    raise RuntimeError("broken off")


def _remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


# By trial


@pytest.mark.parametrize(
    ("algorithm", "method"),
    [("ppo", "lora"), ("ppo", "full"), ("grpo", "lora"), ("rloo", "lora"), ("online-dpo", "lora")],
)
def test_trial_raises_a_known_reward(algorithm: str, method: str, base: Path, tmp_path: Path) -> None:
    settings = TRIAL | {
        "algorithm": algorithm,
        "method": method,
        "reward": f"{tmp_path}/judge.py:sevens",
        "max_steps": 20,
        "num_train_epochs": 10,
        "num_ppo_epochs": 2,
        "num_mini_batches": 2,
        "beta": 0.01,
        # At twice that a state nearly vanished in a step of GRPO on one chip: the norm made 3e-3 of the last digit.
        "learning_rate": 1e-2 if method == "lora" else 5e-3,
    }
    run = run_on(prompts(), base, tmp_path / "run", settings)
    first, last = run.outcome["curve"][0], run.outcome["curve"][-1]
    assert first["validation_kl"] == pytest.approx(0, abs=1e-4)
    assert last["validation_reward"] > first["validation_reward"] + 1.5 * first["validation_reward_std"]
    assert last["validation_kl"] > 0
    lines = log_lines(run)
    assert len(lines) == 20
    for line in lines:
        assert line["first_ratio_gap"] < 1e-5
        assert line["first_approxkl"] < 1e-6
        assert line["sampler_gap"] < 1e-3
    assert lines[0]["sampler_gap"] < 1e-5, "the same numbers by another way; their rounding grows with the logits"
    assert max(line["policy/approxkl_avg"] for line in lines) > 1e-5, "later passes do move"
    names = {"objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward"}
    names |= {"objective/scores", "policy/approxkl_avg", "policy/clipfrac_avg", "policy/entropy_avg", "loss/policy_avg"}
    names |= {"val/ratio", "val/ratio_var", "val/num_eos_tokens", "lr", "episode", "eps"}
    if algorithm == "ppo":
        names |= {"loss/value_avg", "val/clipfrac_avg", "value_explained"}
    assert names <= set(lines[0])
    assert lines[-1]["episode"] == 20 * 24


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # asked for by PEFT
def test_a_run_by_trial_loads_elsewhere(base: Path, tmp_path: Path) -> None:
    settings = TRIAL | {"algorithm": "ppo", "reward": f"{tmp_path}/judge.py:sevens"}
    run = run_on(prompts(), base, tmp_path / "run", settings)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run.folder).eval()
    ids = torch.tensor([[1, 9, 12, 40]])
    network = Run.open(run.folder).network
    network.model.set_attn_implementation("eager")
    with torch.inference_mode():
        torch.testing.assert_close(plain(ids).logits, network.model(ids).logits, atol=1e-5, rtol=1e-5)
    assert {"value.safetensors", "report.html"} <= set(run.manifest["files"])
    assert not {"value.safetensors", "report.html"} & set(run.model_files), "what others load is without them"
    assert (run.folder / "report.html").read_text().count("<svg") >= 3
    assert run.manifest["algorithm"] == "ppo"
    samples = [line["samples"] for line in run.metrics() if "samples" in line]
    assert {"prompt", "answer", "score", "log_ratio"} <= set(samples[0][0])


def test_what_is_kept_is_the_running_mean(base: Path, tmp_path: Path) -> None:
    """By the definition, over the weights that the checkpoints of the steps have, up to the best evaluation."""
    settings = TRIAL | {"algorithm": "grpo", "reward": f"{tmp_path}/judge.py:sevens", "max_steps": 4, "eval_steps": 2}
    settings |= {"save_steps": 1, "ema": 0.6, "num_mini_batches": 1}
    weights: list[dict[str, torch.Tensor]] = []
    update = Trials._update_once

    def note(trials: Trials, *given: Any) -> Any:
        policy = trainable(trials._trial.network)
        weights.extend([] if weights else [{name: p.detach().clone() for name, p in policy}])
        done = update(trials, *given)
        weights.append({name: p.detach().clone() for name, p in policy})
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trials, "_update_once", note)
        patch.setattr(Progress, "note", lambda progress, step, loss: note_second_as_best(progress, step))
        run = run_on(prompts(), base, tmp_path / "run", settings)
    assert run.outcome["best_step"] == 2
    saved = load_file(run.folder / "adapter_model.safetensors")
    for name in weights[0]:
        first, second, third = (one[name] for one in weights[:3])
        mean = 0.36 * first + 0.24 * second + 0.4 * third
        key = name.replace(".default", "")
        torch.testing.assert_close(saved[key], mean, atol=1e-6, rtol=1e-5)
        assert "lora_A" in name or not torch.allclose(mean, third, rtol=1e-3)


def note_second_as_best(progress: Progress, step: int) -> None:
    progress.evaluated = step
    if step == 2:
        progress.outcome.best_step = step


def test_the_running_mean_is_what_is_judged(base: Path, tmp_path: Path) -> None:
    trials = make_trials(base, tmp_path, algorithm="grpo", ema=0.9)
    rollout = trials._roll_out(trials._trial.prompts[:6], 4, 1)
    judged = trials._judge(rollout, trials._trial.reward)
    set_learning_rate(trials.state.optimizer, trials._plan, 0, 1)
    trials._update_once(rollout, judged, TEACHERS["grpo"](judged, 0.05, trials._config), list(range(6)))
    raw = {name: p.detach().clone() for name, p in trials.state.parameters}
    assert trials._average is not None
    with trials._average.speaking():
        mean = trials._speaker.say_all(rollout, 3).logp_N
    assert all(torch.equal(p, raw[name]) for name, p in trials.state.parameters)
    with trials._reference.speaking():
        start = trials._speaker.say_all(rollout, 3).logp_N
    own = trials._speaker.say_all(rollout, 3).logp_N
    assert 0 < (mean - start).abs().max() < (own - start).abs().max()


def make_reward_model(tmp_path: Path, **settings: Any) -> Path:
    from tests.test_rewarding import make_base, make_rows
    from tests.test_rewarding import run_on as run_reward

    return run_reward(make_rows(), make_base("llama", tmp_path / "rm"), tmp_path / "reward", **settings).folder


@pytest.mark.parametrize(
    ("algorithm", "value"),
    [
        ("ppo", "head"),
        ("ppo", "reward"),
        ("online-dpo", "head"),
        *(pytest.param(a, "head", marks=pytest.mark.soak) for a in ("grpo", "rloo")),
    ],
)
def test_a_run_by_trial_goes_on_to_the_bit(algorithm: str, value: str, base: Path, tmp_path: Path) -> None:
    """Adaptive cost, value, optimizer, draws and prompts: all as if nothing had been."""
    settings = TRIAL | {
        "algorithm": algorithm,
        "reward": f"{tmp_path}/judge.py:sevens",
        "max_steps": 6,
        "num_ppo_epochs": 2,
        "save_steps": 2,
        "eval_steps": 2,
        "target_kl": 0.5,
        "kl_horizon": 50,
        "beta": 0.1,
        "early_stopping_patience": 100,
    }
    if value == "reward":
        settings |= {"reward": str(make_reward_model(tmp_path, max_steps=1)), "value": value, "ema": 0.8}
    whole = run_on(prompts(), base, tmp_path / "whole", settings)
    cut = tmp_path / "cut"
    update = Trials._update_once

    def break_off(trials: Trials, *given: Any) -> Any:
        """In the second update of the sixth step."""
        if trials.state.step == 5 and given[-1] is None:
            raise RuntimeError("broken off")
        return update(trials, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trials, "_update_once", break_off)
        with pytest.raises(RuntimeError, match="broken off"):
            run_on(prompts(), base, cut, settings)
    again = run_on(prompts(), base, cut, settings | {"resume": True})
    assert digest(again.folder) == digest(whole.folder)


def make_trials(base: Path, tmp_path: Path, **more: Any) -> Trials:
    config = configure(
        base, tmp_path / "none", TRIAL | {"algorithm": "ppo", "reward": f"{tmp_path}/judge.py:sevens"} | more
    )
    parts = split_examples(sources.load(prompts(), None), config)
    prepared = aligning._prepare(config, find_method(config.method), parts, False)
    assert prepared.course is not None
    trials: Trials = prepared.course.__self__  # type: ignore[attr-defined]
    return trials


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_value_may_begin_as_the_reward_model(method: str, base: Path, tmp_path: Path) -> None:
    """At every token what plain transformers says of the text before it, as the reward is shifted, scaled and weighed;
    and all of it learns."""
    folder = make_reward_model(tmp_path, max_steps=2, method="full")
    rewards = {"reward": f"{tmp_path}/judge.py:sevens,{folder}", "reward_weights": "1,0.5"}
    trials = make_trials(base, tmp_path, **rewards, value="reward", method=method, value_learning_rate=1e-3)
    rollout = trials._roll_out(trials._trial.prompts[:3], 2, 1)
    found_N = trials._speaker.say_all(rollout, 2).value_N
    assert found_N is not None
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    report = json.loads((folder / "reward.json").read_text())
    expected = []
    with torch.inference_mode():
        for prompt, answers in zip(rollout.prompts, rollout.answers, strict=True):
            for answer in answers:
                states = plain.model(torch.tensor([[*prompt.ids, *answer.ids]])).last_hidden_state[0]
                logits = plain.score(states[len(prompt.ids) - 1 : -1])[:, 0].tolist()
                expected += [0.5 * (logit + report["shift"]) / report["deviation"] for logit in logits]
    torch.testing.assert_close(found_N, torch.tensor(expected), atol=1e-4, rtol=1e-4)

    judged = trials._judge(rollout, trials._trial.reward)
    before = {name: p.detach().clone() for name, p in trials.state.parameters if name.startswith("value.")}
    lesson = TEACHERS["ppo"](judged, 0.05, trials._config)
    set_learning_rate(trials.state.optimizer, trials._plan, 0, 1)
    for _ in range(2):  # LoRA's first matrix has no gradient while its second is 0
        trials._update_once(rollout, judged, lesson, [0, 1, 2])
    moved = {name for name, p in trials.state.parameters if name in before and not torch.equal(p, before[name])}
    assert any("score" in name for name in moved)
    assert len(moved) > 0.9 * len(before)
    changed = max((p - before[name]).abs().max().item() for name, p in trials.state.parameters if name in before)
    assert changed < 3e-3, "at its own rate, a tenth of the policy's"


def test_a_value_network_learns_by_the_method_and_counts(base: Path, tmp_path: Path) -> None:
    """LoRA+ has its second matrices learn 16 times as fast, in the value's network as in the policy's."""
    folder = make_reward_model(tmp_path, max_steps=1, method="full")
    settings = {"reward": str(folder), "value": "reward", "method": "lora-plus", "value_learning_rate": 1e-3}
    trials = make_trials(base, tmp_path, **settings)
    rates = {id(p): group["lr"] for group in trials.state.optimizer.param_groups for p in group["params"]}
    of_value = {name: rates[id(p)] for name, p in trials.state.parameters if name.startswith("value.")}
    assert {rate for name, rate in of_value.items() if "lora_A" in name} == {1e-3}
    assert {rate for name, rate in of_value.items() if "lora_B" in name} == {16 * 1e-3}
    assert trials._trial.value is not None
    own, whole = (
        count_parameters(trials._trial.network),
        count_parameters(trials._trial.network, trials._trial.value.modules()),
    )
    assert whole[0] == sum(p.numel() for _, p in trials.state.parameters) > own[0]
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    of_adapters = sum(p.numel() for name, p in trials.state.parameters if "lora" in name and name in of_value)
    assert whole[1] - own[1] >= sum(p.numel() for p in plain.parameters()) + of_adapters
    manifest = run_on(
        prompts(), base, tmp_path / "run", TRIAL | settings | {"algorithm": "ppo", "max_steps": 1}
    ).manifest
    assert (manifest["trainable_parameters"], manifest["total_parameters"]) == whole


def test_another_judge_is_noticed(base: Path, tmp_path: Path) -> None:
    """Under the same name: a function that was changed, and a reward model that was trained again."""
    judge = make_reward_model(tmp_path, max_steps=1)
    settings = TRIAL | {"algorithm": "rloo", "reward": f"{tmp_path}/judge.py:sevens", "gold_reward": str(judge)}
    settings["max_steps"] = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunesmith.tuning._save", _break_off)
        with pytest.raises(RuntimeError, match="broken off"):
            run_on(prompts(), base, tmp_path / "run", settings)
    (tmp_path / "judge.py").write_text(REWARD.replace("w7", "w8"))
    with pytest.raises(InputError, match="judges: what judges answers"):
        run_on(prompts(), base, tmp_path / "run", settings | {"resume": True})
    (tmp_path / "judge.py").write_text(REWARD)
    shutil.rmtree(judge)
    make_reward_model(tmp_path, max_steps=2)
    with pytest.raises(InputError, match="judges: what judges answers"):
        run_on(prompts(), base, tmp_path / "run", settings | {"resume": True})
    shutil.rmtree(judge)
    make_reward_model(tmp_path, max_steps=1)
    assert run_on(prompts(), base, tmp_path / "run", settings | {"resume": True}).outcome["steps"] == 1


def test_a_value_that_cannot_follow_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 of the rewards"):
        make_trials(base, tmp_path, value="reward")
    from tests.test_rewarding import make_base, make_rows
    from tests.test_rewarding import run_on as run_reward

    judge = run_reward(make_rows(), make_base("bert", tmp_path / "rm"), tmp_path / "encoder", max_steps=1)
    with pytest.raises(InputError, match="is an encoder"):
        make_trials(base, tmp_path, value="reward", reward=str(judge.folder))


def gradient_by_parts(base: Path, tmp_path: Path, size: int) -> dict[str, torch.Tensor]:
    """Of one update on six prompts, `size` of them in a pass."""
    trials = make_trials(base, tmp_path, per_device_train_batch_size=size, max_grad_norm=1e9)
    rollout = trials._roll_out(trials._trial.prompts[:6], 4, 1)
    judged = trials._judge(rollout, trials._trial.reward)
    lesson = TEACHERS["ppo"](judged, 0.05, trials._config)
    found: dict[str, torch.Tensor] = {}

    def note() -> None:
        found.update({name: p.grad.clone() for name, p in trials.state.parameters if p.grad is not None})

    trials.state.optimizer.step = note  # type: ignore[assignment, method-assign]
    trials._update_once(rollout, judged, lesson, list(range(6)))
    return found


def test_passes_over_parts_have_the_gradient_of_the_whole(base: Path, tmp_path: Path) -> None:
    parts, whole = (gradient_by_parts(base, tmp_path, size) for size in (1, 6))
    assert any(name.startswith("value_head") for name in whole)
    for name, one in parts.items():
        torch.testing.assert_close(one, whole[name], atol=1e-6, rtol=1e-4)


def test_one_pass_for_both_is_the_same(base: Path, tmp_path: Path) -> None:
    """Where one pass takes all prompts it serves as old and new; where it does not, old is computed for itself."""
    settings = TRIAL | {"algorithm": "ppo", "reward": f"{tmp_path}/judge.py:sevens", "num_ppo_epochs": 2}
    runs = [
        run_on(prompts(), base, tmp_path / str(size), settings | {"per_device_train_batch_size": size})
        for size in (6, 3)
    ]
    for one, other in zip(*map(log_lines, runs), strict=True):
        for name in ("objective/kl", "objective/scores", "loss/policy_avg", "loss/value_avg", "policy/approxkl_avg"):
            assert one[name] == pytest.approx(other[name], abs=1e-4), name
    assert log_lines(runs[0])[0]["first_ratio_gap"] == 0


def test_the_reference_is_the_network_as_it_began(base: Path, tmp_path: Path) -> None:
    trials = make_trials(base, tmp_path)
    network, config = trials._trial.network, trials._config
    named = trainable(network)
    reference = Reference(named)
    rollout = roll_out(network, trials._trial.prompts[:3], Decoding(6, 1.0, seed=3), torch.float32, 4)
    speaker = Speaker(network, config.temperature, torch.float32)
    before = speaker.say_all(rollout, 3).logp_N
    with torch.no_grad():
        for _, parameter in named:
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.1)
    moved = speaker.say_all(rollout, 3).logp_N
    with reference.speaking():
        assert torch.equal(speaker.say_all(rollout, 3).logp_N, before)
    assert torch.equal(speaker.say_all(rollout, 3).logp_N, moved)
    assert (moved - before).abs().max() > 1e-2


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_probabilities_are_those_of_the_draws(temperature: float, base: Path, tmp_path: Path) -> None:
    """By a plain pass over each answer behind its prompt, logits divided by the temperature."""
    trials = make_trials(base, tmp_path, temperature=temperature)
    network = trials._trial.network
    rollout = trials._roll_out(trials._trial.prompts[:5], 3, 1)
    found = trials._speaker.say_all(rollout, 2, with_entropy=True)
    network.model.set_attn_implementation("eager")
    expected, entropies = [], []
    with torch.inference_mode():
        for prompt, answers in zip(rollout.prompts, rollout.answers, strict=True):
            for answer in answers:
                logits = network.model(torch.tensor([[*prompt.ids, *answer.ids]])).logits[0] / temperature
                logp_TV = logits.log_softmax(-1)[len(prompt.ids) - 1 : -1]
                expected += logp_TV.gather(1, torch.tensor(answer.ids)[:, None])[:, 0].tolist()
                entropies += (-(logp_TV.exp() * logp_TV).sum(-1)).tolist()
    torch.testing.assert_close(found.logp_N, torch.tensor(expected), atol=1e-5, rtol=1e-5)
    assert found.entropy_N is not None
    torch.testing.assert_close(found.entropy_N, torch.tensor(entropies), atol=1e-4, rtol=1e-4)
    drawn = torch.tensor([logprob for answer in rollout.flat for logprob in answer.logprobs])
    assert ((drawn - found.logp_N).abs().max() < 1e-5) == (temperature == 1.0)


def test_places_of_tokens(base: Path, tmp_path: Path) -> None:
    trials = make_trials(base, tmp_path)
    rollout = trials._roll_out(trials._trial.prompts[:4], 2, 1)
    flat = torch.tensor([token for answer in rollout.flat for token in answer.ids])
    for chosen in ([2], [3, 0]):
        wanted = [token for place in chosen for answer in rollout.answers[place] for token in answer.ids]
        assert flat[_places(rollout, chosen)].tolist() == wanted
        batch = rollout.part(chosen).packed(0)
        assert batch.answers is not None
        assert batch.answers.tokens.tolist() == wanted
    assert sum(_tokens(rollout, range(4))) == len(flat)


def test_answers_that_do_not_end_cost_something(base: Path, tmp_path: Path) -> None:
    trials = make_trials(base, tmp_path, missing_eos_penalty=2.5)
    rollout = trials._roll_out(trials._trial.prompts[:6], 4, 1)
    penalised = trials._judge(rollout, trials._trial.reward).score_B
    plain = trials._trial.reward(rollout.turns, [answer.text for answer in rollout.flat])
    for answer, score, own in zip(rollout.flat, penalised.tolist(), plain, strict=True):
        assert score == own - (0 if answer.finished else 2.5)


def test_rewards_may_be_cut(base: Path, tmp_path: Path) -> None:
    """Before what an answer without an end costs, which is not cut."""
    trials = make_trials(base, tmp_path, cliprange_reward=0.5, missing_eos_penalty=2.5)
    rollout = trials._roll_out(trials._trial.prompts[:6], 4, 1)
    judged = trials._judge(rollout, trials._trial.reward)
    plain = trials._trial.reward(rollout.turns, [answer.text for answer in rollout.flat])
    for answer, score, own in zip(rollout.flat, judged.score_B.tolist(), plain, strict=True):
        assert score == min(own, 0.5) - (0 if answer.finished else 2.5)
    assert judged.clipped == pytest.approx((plain > 0.5).mean())
    assert judged.clipped > 0


def test_texts_not_to_be_forgotten_take_part(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "own.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"w{i}", "completion": f"w{i + 1}"}) + "\n" for i in range(10, 40)))
    settings = TRIAL | {"algorithm": "ppo", "reward": f"{tmp_path}/judge.py:sevens", "beta": 0.0}
    with_ptx = settings | {"ptx_data": str(data), "ptx_coef": 1.0, "max_steps": 8, "num_train_epochs": 5}
    losses = [line["loss/ptx"] for line in log_lines(run_on(prompts(), base, tmp_path / "run", with_ptx))]
    assert losses[-1] < losses[0]


def test_the_divergence_can_stop_a_run(base: Path, tmp_path: Path) -> None:
    settings = TRIAL | {"algorithm": "rloo", "reward": f"{tmp_path}/judge.py:sevens", "max_kl": 0.001, "max_steps": 9}
    run = run_on(prompts(), base, tmp_path / "run", settings | {"learning_rate": 0.05})
    assert run.outcome["stopped_early"]
    assert run.outcome["steps"] < 9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": "ppo"}, "needs a reward"),
        ({"algorithm": "dpo", "reward": "a:b"}, "takes no reward"),
        ({"algorithm": "grpo", "reward": "a:b", "num_generations": 1}, "2 or more"),
        ({"algorithm": "ppo", "reward": "a:b", "reward_weights": "1,2"}, "2 numbers for 1 rewards"),
        ({"algorithm": "ppo", "reward": "no_module_of_this_name:b"}, "no_module_of_this_name"),
        ({"algorithm": "ppo", "reward": "{place}/judge.py:sixes"}, "sevens"),
        ({"algorithm": "ppo", "reward": "{place}/judge.py:nothing"}, "finite"),
        ({"algorithm": "ppo", "reward": "{place}/judge.py:sevens", "max_new_tokens": 63}, "too-long skip"),
        ({"algorithm": "ppo", "reward": "{place}/base"}, "no head that judges"),
    ],
)
def test_what_cannot_be_is_said(settings: dict[str, Any], message: str, base: Path, tmp_path: Path) -> None:
    given = {key: value.format(place=tmp_path) if isinstance(value, str) else value for key, value in settings.items()}
    with pytest.raises(InputError, match=message):
        run_on(prompts(), base, tmp_path / "run", TRIAL | given)


def test_a_reward_model_and_a_classifier_judge(base: Path, tmp_path: Path) -> None:
    judge = make_reward_model(tmp_path, max_steps=3)
    make_model("bert", "classification").save_pretrained(tmp_path / "bert")
    make_tokenizer().save_pretrained(tmp_path / "bert")
    names = f"{judge},{tmp_path}/bert"
    settings = TRIAL | {"algorithm": "ppo", "reward": names, "reward_weights": "1,0.5", "max_steps": 2}
    run = run_on(prompts(), base, tmp_path / "run", settings | {"gold_reward": f"{tmp_path}/judge.py:sevens"})
    assert "validation_gold" in run.outcome["curve"][0]


def test_texts_become_prompts() -> None:
    rows = [{"text": f"a film of {i} words that goes on", "label": "ab"[i % 2]} for i in range(4)]
    config = AlignConfig.read(
        given={"model": "m", "data": "d", "algorithm": "ppo", "reward": "a:b", "opening_words": 3}
        | {"prompt_template": "Go on: {text}"}
    )
    (turn,) = aligning.turns_of(sources.load(rows).rows[2], config)
    assert turn.content == "Go on: a film of"


def test_the_command_aligns_and_goes_on(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in prompts()))
    flags = ["--model", str(base), "--data", str(data), "--output", str(tmp_path / "run"), "--max-steps", "2"]
    flags += ["--algorithm", "rloo", "--reward", f"{tmp_path}/judge.py:sevens", "--max-new-tokens", "5"]
    assert cli.run(["align", *flags, "--precision", "fp32", "--device", "cpu"]) == 0
    said = capsys.readouterr()
    assert "deviations of the start" in said.out
    assert "prompts, to be answered by the model" in said.err
    assert cli.run(["align", "--resume", "--output", str(tmp_path / "run")]) == 0
    assert "is finished already" in capsys.readouterr().err
