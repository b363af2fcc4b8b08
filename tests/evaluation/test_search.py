"""Learning rates by successive halving: what is chosen, what it costs, and that the chosen training is unchanged."""

from __future__ import annotations

import io
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tests.evaluation.comparisons import make_comparison
from tests.parity.tiny import make_model, make_tokenizer

import tunesmith
from tunesmith.config import TuneConfig
from tunesmith.config_compare import CompareConfig
from tunesmith.data.parts import load_split
from tunesmith.errors import InputError
from tunesmith.evaluation import compare as comparing
from tunesmith.evaluation import jobs
from tunesmith.evaluation.compare import Comparison
from tunesmith.evaluation.report import write_report
from tunesmith.evaluation.search import FACTORS, Search, Visit, seek, share
from tunesmith.system_tables import search_table
from tunesmith.train.course import Limit
from tunesmith.tuning import tune

OWN = 1e-3
RATES = [OWN, 3e-3, 3.3e-4, 1e-2]


class Made:
    """Trainings that cost made-up seconds on a made-up clock and have made-up losses."""

    def __init__(self, loss: Callable[[float, int], float], num_steps: int = 80, step: float = 1.0, visit: float = 2.0):
        self._loss, self._num_steps, self._visit = loss, num_steps, visit
        self.step = step
        self.now = 0.0
        self.steps: dict[int, int] = {}
        self.break_at = -1
        self.num_visits = 0

    def visit(self, number: int, rate: float | None, limit: Limit | None) -> Visit:
        if self.num_visits == self.break_at:
            self.break_at = -1
            raise KeyboardInterrupt
        self.num_visits += 1
        self.now += self._visit
        rate, limit = rate or OWN, limit or Limit(8)
        done = self.steps.setdefault(number, 0)
        while done < min(limit.step, self._num_steps) and self.now < limit.moment:
            done, self.now = done + 1, self.now + self.step
        self.steps[number] = done
        loss = self._loss(rate, done) if done >= min(limit.step, self._num_steps) else None
        return Visit(rate, done, self._num_steps, done * self.step, loss, done == self._num_steps)

    def drop(self, number: int) -> None:
        self.steps[number] = -abs(self.steps.get(number, 0))

    def search(self, seconds: float) -> Search:
        found = Search(seconds)
        self.go_on(found)
        return found

    def go_on(self, found: Search) -> None:
        seek(found, self, 0.06, lambda: None, lambda: self.now)


def bowl(best: float) -> Callable[[float, int], float]:
    """Losses that fall with the steps and are the lowest at one rate, whatever the step."""
    return lambda rate, steps: 2 / (1 + steps) + abs(math.log(rate / best))


@pytest.mark.parametrize("best", RATES)
def test_the_best_rate_is_found_where_the_order_never_changes(best: float) -> None:
    made = Made(bowl(best))
    found = made.search(1e6)
    assert found.chosen == best == min(RATES, key=lambda rate: bowl(best)(rate, 80))
    assert [trial.rate for trial in found.trials] == RATES
    # Four train for half of the steps, two for all: as in the paper's figure 2 with n = 4.
    assert sorted(map(abs, made.steps.values())) == [40, 40, 80, 80]
    assert [len(trial.losses) for trial in found.trials].count(2) == 2
    assert ("that was tried" in found.note) == (best in (min(RATES), max(RATES)))


def test_a_plan_fills_its_time_and_never_exceeds_it() -> None:
    """Each visit 2 s, each step 1 s: four rates, two of them twice as far, are 12 s + 6 s a step of the first rung."""
    for seconds in range(20, 400, 7):
        made = Made(bowl(OWN))
        found = made.search(seconds)
        assert made.now <= seconds
        assert found.spent == made.now
        assert len(found.trials) + len(found.left_out) == len(FACTORS)
        left = (seconds - 10) * 0.9 + 8  # after the probe of 8 steps, which count on
        if len(found.rungs) == 2 and len(found.trials) == 4 and found.rungs[0] < 40:
            assert 12 + 6 * found.rungs[0] <= left < 12 + 6 * (found.rungs[0] + 1)
        if found.rungs:
            assert found.rungs[0] >= 20
            assert all(high == 2 * low for low, high in pairwise(found.rungs))
    counts = [len(Made(bowl(OWN)).search(seconds).trials) for seconds in range(20, 160)]
    assert counts == sorted(counts)
    assert set(counts) == {1, 2, 3, 4}


def test_the_time_is_obeyed_when_steps_become_slower() -> None:
    rng = random.Random(0)
    for _ in range(200):
        made = Made(bowl(rng.choice(RATES)))
        usual = made.visit

        def slower(number: int, rate: float | None, limit: Limit | None, made: Made = made) -> Visit:
            found = usual(number, rate, limit)  # noqa: B023 (called in this turn alone)
            made.step = rng.uniform(0.5, 6)
            return found

        made.visit = slower  # type: ignore[method-assign]
        seconds = rng.uniform(20, 300)
        found = made.search(seconds)
        assert made.now <= seconds + 6, "more than the step that was under way"
        ranked = [trial for trial in found.trials if trial.losses]
        assert found.chosen is None or found.chosen in [trial.rate for trial in ranked]
        if len(found.trials) > 1 and len(ranked) < len(found.trials):
            assert "time was up before" in found.note


def test_too_little_time_says_how_much_would_do() -> None:
    found = Made(bowl(3e-3)).search(20)
    assert (found.chosen, found.rungs) == (None, ())
    needed = float(found.note.rsplit("about ", 1)[1].removesuffix(" s"))
    assert Made(bowl(3e-3)).search(needed + 1).chosen == 3e-3
    assert Made(bowl(3e-3)).search(needed - 2).chosen is None


def test_a_rate_that_diverges_is_out_and_the_others_go_on() -> None:
    def loss(rate: float, steps: int) -> float:
        if rate == 1e-2:
            raise InputError("step 9: the loss is nan\nmore")
        return math.inf if rate == 3e-3 else bowl(3e-3)(rate, steps)

    found = Made(loss).search(1e6)
    errors = {trial.rate: trial.error for trial in found.trials}
    assert errors[1e-2] == "step 9: the loss is nan"
    assert "inf" in errors[3e-3]
    assert found.chosen == OWN
    told = {trial["rate"]: trial["outcome"] for trial in found.to_mapping()["trials"]}
    assert told[1e-2].startswith("failed: step 9")
    assert told[OWN] == "chosen"
    assert told[3.3e-4] == "dropped after 80 steps"


@pytest.mark.parametrize("at", range(7))
def test_broken_off_anywhere_it_goes_on_to_the_same_end(at: int) -> None:
    whole, made = Made(bowl(1e-2)), Made(bowl(1e-2))
    expected = whole.search(300)
    made.break_at = at
    found = Search(300)
    with pytest.raises(KeyboardInterrupt):
        made.go_on(found)
    kept = Search.from_mapping(json.loads(json.dumps(found.__dict__, default=lambda value: value.__dict__)))
    made.go_on(kept)
    assert kept == expected
    assert made.steps == whole.steps


def test_what_a_search_leaves_goes_to_the_next_ones() -> None:
    over = Search(40, spent=10, is_over=True)
    assert share(120, [None, None, None]) == 40
    assert share(120, [over, None, None]) == 55
    assert share(120, [over, over, Search(55, spent=3)]) == 100
    assert share(15, [over, over, None]) == 0


@pytest.mark.parametrize(("given", "seconds"), [("90s", 90), ("20m", 1200), ("1.5h", 5400)])
def test_durations(given: str, seconds: float, tmp_path: Path) -> None:
    config = CompareConfig.read(given={"model": "m", "data": "d", "budget": given})
    assert config.budget == seconds
    (tmp_path / "c.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert CompareConfig.read(tmp_path / "c.yaml") == config


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"budget": "20"}, "write a duration with its unit: 90s, 20m or 1h"),
        ({"budget": "0s"}, "greater than 0"),
        ({"budget": "1m", "methods": "lora", "learning_rates": "lora=1e-3"}, "learning_rates gives all of them"),
    ],
)
def test_wrong_budgets(more: dict[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        CompareConfig.read(given={"model": "m", "data": "d", **more})


def make_job(folder: Path) -> dict[str, object]:
    """A model and rows of two classes, and the keys that name them."""
    make_model("bert", "classification").save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    rng = random.Random(0)
    lines = [
        json.dumps({"text": " ".join(f"w{rng.randrange(5, 90)}" for _ in range(6)), "label": "ab"[index % 2]})
        for index in range(120)
    ]
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return {
        "model": str(folder / "model"),
        "data": str(folder / "rows.jsonl"),
        "precision": "fp32",
        "check": False,
    }


def test_a_chosen_training_is_the_one_that_was_never_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Weights and curve of the method are, to the bit, those of `tune` at the chosen rate."""
    monkeypatch.setattr(jobs, "_apart", lambda work, job: work(job))  # processes of their own take seconds to begin
    monkeypatch.setattr(comparing, "start_server", lambda: None)
    # Fourteen steps of six an epoch: rungs at 7, where no training would evaluate by itself, and at the end.
    keys: dict[str, object] = make_job(tmp_path) | {"max_steps": 14, "num_train_epochs": 9}
    more = {"methods": "lora", "baselines": "", "budget": "60s", "seeds": 2, "output": tmp_path / "out"}
    found = comparing.compare(CompareConfig.read(given=keys | more))
    (lora,) = found.systems
    resumed = [line.rpartition(" ")[2] for line in capfd.readouterr().err.splitlines() if "going on with" in line]
    assert resumed == ["2", "7", "7"], "the probe, and the better two of four; the best has come to its end"
    search = lora.search
    assert search["rungs"] == [7, 14]
    assert len(search["trials"]) == 4
    chosen = search["chosen"]
    assert lora.learning_rate == chosen
    assert lora.total_seconds > search["spent"] > 0

    plain = tune(TuneConfig.read(given=keys | {"learning_rate": chosen, "output": tmp_path / "plain"}), quiet=True)
    ours = Path(lora.folder)
    name = "adapter_model.safetensors"
    assert (ours / name).read_bytes() == (plain.folder / name).read_bytes()
    curve = json.loads((ours / "manifest.json").read_text())["outcome"]["curve"]
    assert curve == plain.manifest["outcome"]["curve"]
    assert not (ours.parent / "search").exists()
    page = found.report.read_text(encoding="utf-8")
    assert f"<td>{chosen:g}</td>" in page
    assert "chosen" in found.report.with_suffix(".md").read_text(encoding="utf-8")
    _check_seeds(found, keys | {"learning_rate": chosen, "seed": 1, "output": tmp_path / "plain-1"})
    again = comparing.compare(CompareConfig.read(given=keys | more))
    assert capfd.readouterr().err.count("finished before, not run again") == 2
    assert again.systems == found.systems
    assert found.to_pandas().set_index("system").loc["lora", "learning_rate"] == chosen


def _check_seeds(found: Comparison, keys: dict[str, object]) -> None:
    """The second training is that of `tune` at the same rate with the next seed, and is judged on the same rows."""
    (lora,) = found.systems
    assert [seed["seed"] for seed in lora.seeds] == [0, 1]
    assert lora.seeds[0]["metrics"] == {name: interval.value for name, interval in lora.metrics.items()}
    folder = found.folder / "methods" / "lora-seed-1"
    said = json.loads((folder / "predictions.json").read_text())
    right = [one == other for one, other in zip(said["targets"], said["outputs"], strict=True)]
    values = [seed["metrics"]["accuracy"] for seed in lora.seeds]
    assert values[1] == np.mean(right)
    assert f"{np.mean(values):.3f} ±{np.std(values, ddof=1):.3f}" in found.verdict.reason
    parts = load_split(CompareConfig.read(given={key: keys[key] for key in ("model", "data", "check")}))
    plain = tune(TuneConfig.read(given=keys), parts, quiet=True)
    name = "adapter_model.safetensors"
    assert (folder / "run" / name).read_bytes() == (plain.folder / name).read_bytes()


@pytest.mark.soak
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_killed_search_goes_on_to_the_same_end(tmp_path: Path) -> None:
    keys = make_job(tmp_path) | {"max_steps": 40, "num_train_epochs": 20, "methods": "lora", "budget": "20m"}
    keys |= {"baselines": "majority", "early_stopping_patience": 40}
    flags = [
        f"--{key.replace('_', '-')}={str(value).lower() if key == 'check' else value}" for key, value in keys.items()
    ]
    command = [sys.executable, "-m", "tunesmith.cli", "compare", *flags]
    environment = os.environ | {"PYTHONPATH": str(Path(tunesmith.__file__).parents[1])}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    subprocess.run([*command, f"--output={tmp_path / 'whole'}"], check=True, timeout=300, **pipes)  # type: ignore[call-overload]
    folder = tmp_path / "killed/methods/lora"
    for number, rate in ((signal.SIGTERM, 1), (signal.SIGKILL, 2)):
        with subprocess.Popen([*command, f"--output={tmp_path / 'killed'}"], **pipes) as process:
            deadline = time.monotonic() + 100
            while not (folder / "search" / str(rate) / "metrics.jsonl").is_file():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(number)
        assert process.returncode != 0
        time.sleep(5)  # what a killed one had begun ends by itself
        assert not json.loads((folder / "search.json").read_text())["search"]["is_over"]
    subprocess.run([*command, f"--output={tmp_path / 'killed'}"], check=True, timeout=300, **pipes)  # type: ignore[call-overload]
    whole, killed = (
        json.loads((tmp_path / name / "methods/lora/search.json").read_text())["search"] for name in ("whole", "killed")
    )
    assert killed["trials"] == whole["trials"]
    assert killed["chosen"] == whole["chosen"]
    name = "methods/lora/run/adapter_model.safetensors"
    assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_pages_and_tables_say_what_was_tried(tmp_path: Path) -> None:
    made = make_comparison()
    made["systems"][-2]["search"] = Made(bowl(3e-3)).search(60).to_mapping()
    write_report(tmp_path / "page.html", made)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(search_table(made))
    for text in (console.export_text(), (tmp_path / "page.html").read_text(), (tmp_path / "page.md").read_text()):
        for words in ("0.003", "chosen", "dropped after", "0.01", "no time for it", "3 times the method's own"):
            assert words in text.replace("&#39;", "'"), (words, text)
    made["systems"][-2]["search"] = {}
    assert search_table(made) is None
