"""Training processes that are killed and started again, and what must be equal in the end.

Each attempt is a process of its own, forked from a small server that has the imports, so that an attempt costs
a second and not ten. It runs the command line as a user would.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.parity.tiny import make_model, make_tokenizer
from transformers import PreTrainedModel

from tunesmith.signals import HEEDED

CLOCKS = {"time", "eps", "tokens_per_second", "memory", "seconds", "train_seconds", "log_offset", "log_seconds"}
MODULES = ["tunesmith.cli", "tunesmith.tuning", "tests.faults.survival"]
# Method, model, task, and flags that make its state rich: dropout, accumulation, several evaluations.
CASES: dict[str, tuple[str, str, list[str]]] = {
    "full": ("bert", "classification", []),
    "last-layers": ("bert", "classification", ["--num-last-layers", "1"]),
    "bottleneck": ("bert", "classification", ["--bottleneck-size", "4"]),
    "lora": ("llama", "generation", ["--lora-r", "2", "--lora-dropout", "0.1"]),
}
# Learning by trial: what must come back is also the value, the steered cost, and where the prompts stand.
TRIAL = [
    *("--algorithm", "ppo", "--method", "lora", "--lora-r", "2", "--max-steps", "14", "--num-train-epochs", "9"),
    *("--prompts-per-step", "4", "--num-generations", "2", "--max-new-tokens", "4", "--num-ppo-epochs", "2"),
    *("--target-kl", "0.5", "--kl-horizon", "50", "--beta", "0.1", "--eval-steps", "3", "--save-steps", "1"),
    *("--device", "cpu", "--precision", "fp32", "--learning-rate", "0.01", "--check", "false"),
]
# Masked words drawn anew in each pass, beside texts that are read on and on, by an optimizer of two kinds.
PRETRAIN = [
    *("--max-length", "24", "--per-device-train-batch-size", "4", "--num-train-epochs", "4", "--optim", "muon"),
    *("--eval-steps", "3", "--save-steps", "1", "--device", "cpu", "--precision", "fp32", "--learning-rate", "0.005"),
]
JUDGE = "def evens(prompts, answers):\n    return [sum(w[-1] in '02468' for w in a.split()) for a in answers]\n"
SHARED = [
    *("--num-train-epochs", "7", "--per-device-train-batch-size", "3", "--gradient-accumulation-steps", "2"),
    *("--eval-steps", "3", "--early-stopping-patience", "100", "--save-steps", "1", "--device", "cpu"),
    # So fast that validation soon gets worse: the best checkpoint is then not the newest.
    *("--precision", "fp32", "--learning-rate", "0.005"),
]


def prepare_server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    return context


def make_base(kind: str, task: Any, folder: Path, seed: int = 0, dropout: float = 0.1) -> Path:
    """A tiny model of a real class, with dropout."""
    model: PreTrainedModel = make_model(kind, task, seed=seed)
    for key in ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout"):
        if hasattr(model.config, key):
            setattr(model.config, key, dropout)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_rows(task: str, file: Path) -> Path:
    rng = random.Random(0)
    lines = []
    for index in range(60):
        text = " ".join(f"w{rng.randrange(5, 90)}" for _ in range(rng.randrange(2, 9))) + f" w{5 + index}"
        row = {"text": text, "label": "abc"[index % 3]}
        lines.append(row if task == "classification" else {"prompt": text, "completion": f"w{5 + index} w{6 + index}"})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def command(method: str, place: Path, output: Path) -> list[str]:
    """The command that begins a run and, given again, goes on with it; of the method "ppo" by trial,
    of "pretrain" on texts."""
    if method == "pretrain":
        return _pretraining(place, output)
    if method == "ppo":
        base, rows, judge = place / "llama", place / "generation.jsonl", place / "judge.py"
        if not judge.exists():
            make_base("llama", "generation", base)
            make_rows("generation", rows)
            judge.write_text(JUDGE)
        given = ["--model", str(base), "--data", str(rows), "--output", str(output), "--resume"]
        return ["align", *given, "--reward", f"{judge}:evens", *TRIAL]
    kind, task, own = CASES[method]
    base, rows = place / kind, place / f"{task}.jsonl"
    if not base.exists():
        make_base(kind, task, base)
        make_rows(task, rows)
    given = ["--model", str(base), "--data", str(rows), "--method", method, "--output", str(output), "--resume"]
    return ["tune", *given, *SHARED, *own]


def _pretraining(place: Path, output: Path) -> list[str]:
    base, book, other = place / "masked-bert", place / "book.txt", place / "other.txt"
    if not base.exists():
        make_base("bert", "classification", base)
        tokenizer = make_tokenizer()
        tokenizer.add_special_tokens({"mask_token": "w95"})
        tokenizer.save_pretrained(base)
        for file, word in ((book, "w7"), (other, "w8")):
            file.write_text("".join(f"{word} w{5 + index % 80} w{9 + index % 31}\n" for index in range(250)))
    given = ["--model", str(base), "--data", str(book), "--mix", f"{other}=0.3", "--output", str(output), "--resume"]
    return ["pretrain", *given, *PRETRAIN]


class Attempt:
    """One process at work on a command. `is_saving` is true while it writes a checkpoint."""

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        sabotage: str = "",
        stop_after: int = 0,
        linger: tuple[str, int] = ("", 0),
    ) -> None:
        """`linger` names a function (module.name) and its call, from 1, that takes half a second longer; meanwhile
        `has_come` is true."""
        context = prepare_server()
        self._saving, self.num_saves, self._come = (context.RawValue("i", 0) for _ in range(3))
        self._seconds_of_save = context.RawValue("d", 0.0)  # of the latest one: disks differ a hundredfold
        shared = (self._saving, self.num_saves, self._come, self._seconds_of_save)
        hooks = (sabotage, stop_after, linger)
        self.process = context.Process(target=_work, args=(list(arguments), log, shared, hooks))
        self.process.start()

    def signal_when_come(self, *numbers: int) -> int:
        """Sends signals once the process lingers; returns its exit code."""
        deadline = time.monotonic() + 60
        while not self._come.value and self.process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        for number in numbers:
            time.sleep(0.1)
            os.kill(self.process.pid, number)
        return self.finish(30)

    @property
    def is_saving(self) -> bool:
        return bool(self._saving.value)

    def finish(self, seconds: float = 60) -> int:
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            raise AssertionError("the attempt did not end in time")
        code: int = self.process.exitcode
        return code

    def kill_in_save(self, rng: random.Random) -> bool:
        """SIGKILL within the next few checkpoints; returns whether it hit the writing of one."""
        wanted = self.num_saves.value + rng.randrange(1, 4)
        deadline = time.monotonic() + 30
        while self.num_saves.value < wanted and self.process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.0002)
        time.sleep(rng.random() * self._seconds_of_save.value)
        return self._kill()

    def kill_some_time(self, rng: random.Random, seconds: float) -> bool:
        time.sleep(rng.random() * seconds)
        return self._kill()

    def _kill(self) -> bool:
        self.process.kill()
        self.process.join()
        return self.is_saving


def _linger(place: str, call: int, come: Any) -> None:
    """Makes one call of a function wait before it begins."""
    module, _, name = place.rpartition(".")
    owner = importlib.import_module(module)
    function, count = getattr(owner, name), itertools.count(1)

    def slow(*given: Any, **more: Any) -> Any:
        if next(count) == call:
            come.value = 1
            for _ in range(50):
                time.sleep(0.01)
        return function(*given, **more)

    setattr(owner, name, slow)


def _work(arguments: list[str], log: Path, shared: Any, hooks: tuple[str, int, tuple[str, int]]) -> None:
    """The life of an attempt; `hooks` are its sabotage, stop_after and linger.

    With `stop_after` it is killed as the checkpoint after so many begins.
    """
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for number in HEEDED:  # tests that run in a shell's background have SIGINT ignored, which is inherited and heeded
        signal.signal(number, signal.SIG_DFL)
    from tests.faults import sabotages

    from tunesmith import cli, tuning
    from tunesmith.train import saver

    tuning._foresee = lambda *_: None  # seconds of each attempt, and no part of what it survives

    saving, num_saves, come, seconds_of_save = shared
    sabotage, stop_after, (place, call) = hooks
    save = saver.save_checkpoint

    def watched(*given: Any) -> Path:
        if num_saves.value == stop_after > 0:
            os.kill(os.getpid(), signal.SIGKILL)
        saving.value, num_saves.value = 1, num_saves.value + 1
        begun = time.monotonic()
        made = save(*given)
        saving.value, seconds_of_save.value = 0, time.monotonic() - begun
        return made

    saver.save_checkpoint = watched
    if sabotage:
        (sabotages.SABOTAGES | sabotages.OF_TRIALS)[sabotage]()
    if place:
        _linger(place, call, come)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    cli.main(arguments)


def digest(run: Path) -> dict[str, str]:
    """sha256 of all that two runs with equal inputs must share, by name. Clocks are left out."""
    checkpoint = max((run / "checkpoints").glob("step-*"), key=lambda path: int(path.name.split("-")[1].split(".")[0]))
    files = [*run.glob("*.safetensors"), *checkpoint.glob("*.safetensors")]
    found = {str(path.relative_to(run)): _sha256(path.read_bytes()) for path in sorted(files)}
    state = json.loads((checkpoint / "state.json").read_text())
    found["state"] = _sha256(_without_clocks(state))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found["metrics"] = _sha256(_without_clocks(lines))
    found["outcome"] = _sha256(_without_clocks(json.loads((run / "manifest.json").read_text())["outcome"]))
    return found


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _without_clocks(value: Any) -> bytes:
    def strip(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: strip(inner) for key, inner in item.items() if key not in CLOCKS}
        return [strip(inner) for inner in item] if isinstance(item, list) else item

    return json.dumps(strip(value), sort_keys=True).encode()


def steps_logged(run: Path) -> list[int]:
    """The step of every training line of metrics.jsonl, in order."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "loss" in line]


@dataclass
class Survival:
    """What was done to the runs of one command, and the digest of each that has ended."""

    log: Path
    in_save: int = 0
    outside: int = 0
    runs: list[Path] = field(default_factory=list)
    digests: list[dict[str, str]] = field(default_factory=list)

    def end(self, run: Path) -> None:
        """Takes note of a finished run and moves it away."""
        self.digests.append(digest(run))
        self.runs.append(run.rename(run.with_name(f"{run.name}-{len(self.runs)}")))


def survive(method: str, place: Path, num_kills: int, seed: int) -> Survival:
    """Gives one command again and again and kills it, `num_kills` times in all, and lets the last run end.

    A run that ends before it is killed is noted, and the next one begins.
    """
    rng = random.Random(f"{method}/{seed}")
    output, done = place / f"{method}-{seed}", Survival(place / f"{method}-{seed}.txt")
    arguments = command(method, place, output)
    while done.in_save + done.outside < num_kills:
        attempt = Attempt(arguments, done.log)
        hit = attempt.kill_in_save(rng) if rng.random() < 0.6 else attempt.kill_some_time(rng, 1.2)
        if (output / "manifest.json").exists():
            attempt.process.join()
            done.end(output)
        else:
            done.in_save, done.outside = done.in_save + hit, done.outside + (not hit)
    assert Attempt(arguments, done.log).finish() == 0, done.log.read_text()[-2000:]
    done.end(output)
    return done
