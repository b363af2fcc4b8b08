"""The command line as a user meets it: exit codes, one clear message, nothing half-written."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import tunesmith
from tests.parity.tiny import make_model, make_tokenizer
from tunesmith import cli


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-bert")
    make_model("bert", "classification").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-llama")
    make_model("llama", "generation").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def reviews(path: Path, count: int = 60) -> Path:
    rng = random.Random(0)
    rows = ["text,label"]
    for index in range(count):
        rows.append(f"w{rng.randrange(5, 90)} w{rng.randrange(5, 90)} w{5 + index},{'good' if index % 2 else 'bad'}")
    return write(path, "\n".join(rows) + "\n")


GOOD = "text,label\nw5 w6,a\nw7 w8,b\n"
MANY = "text,label\n" + "".join(f"w{i},{'ab'[i % 2]}\n" for i in range(5, 65))

# Name of the case, content of data.csv (None: no such file), further flags, what the message must say.
BAD_INPUT = [
    ("missing file", None, [], "data.csv: no such file"),
    ("empty file", "", [], "data.csv: the file is empty (0 bytes)"),
    ("no rows", "text,label\n", [], "data.csv: no rows, only a header"),
    ("unknown columns", "a,b\n1,2\n", [], "columns (a, b) fit no format"),
    ("mapping to no column", GOOD, ["--columns", "text=txt"], "no column 'txt' (given for text): did you mean 'text'?"),
    ("one class", "text,label\nw5,a\nw6,a\n", [], "all 2 rows have the one label 'a'"),
    ("empty text", "text,label\nw5,a\n  ,b\nw7,b\n", [], "data.csv:3: 'text' is empty"),
    ("empty label", "text,label\nw5,a\nw6,\n", [], "data.csv:3: 'label' is empty"),
    ("too few fields", "text,label\nw5,a\nw6\n", [], "data.csv:3: 1 fields, the header has 2"),
    ("unclosed quote", 'text,label\nw5,a\n"w6,b\n', [], "data.csv:3: a quote is opened here and never closed"),
    ("twice in the header", "text,text,label\na,b,c\n", [], "data.csv:1: the column 'text' stands twice"),
    ("too few rows", GOOD, [], "2 rows are too few"),
    ("unknown method", GOOD, ["--method", "lorra"], "unknown method 'lorra': did you mean 'lora'?"),
    (
        "unknown task",
        GOOD,
        ["--task", "rank"],
        "task: Input should be 'classification', 'regression', 'generation'",
    ),
    ("value out of range", GOOD, ["--lora-r", "0"], "lora_r: Input should be greater than 0, given '0'"),
    ("not a number", GOOD, ["--learning-rate", "fast"], "learning_rate: Input should be a valid number"),
    ("unknown flag", GOOD, ["--lora-rr", "8"], "Unknown option: --lora-rr"),
    ("no such config", GOOD, ["--config", "absent.yaml"], "absent.yaml: no such configuration file"),
    ("bad device", MANY, ["--device", "warp"], "device 'warp' cannot be used"),
    ("scores asked of words", GOOD, ["--task", "regression"], "data.csv:2: 'label' is 'a', expected a finite number"),
]


@pytest.mark.parametrize(("content", "flags", "words"), [case[1:] for case in BAD_INPUT], ids=[c[0] for c in BAD_INPUT])
def test_bad_input_gives_exit_2_and_one_message(
    model: Path, tmp_path: Path, content: str | None, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.csv"
    if content is not None:
        write(data, content)
    command = ["tune", "--model", str(model), "--data", str(data), "--output", str(tmp_path / "run")]
    assert cli.run([*command, *flags]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert error.startswith("error: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("minilm-l7", "unknown model 'minilm-l7': did you mean 'minilm-l6'?"),
        ("no/such-model", "cannot load model 'no/such-model'"),
        ("./nowhere", "unknown model './nowhere'"),
    ],
)
def test_unknown_model(tmp_path: Path, name: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = reviews(tmp_path / "data.csv")
    assert cli.run(["tune", "--model", name, "--data", str(data), "--output", str(tmp_path / "run")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_encoder_cannot_write(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(json.dumps({"prompt": f"w{i}", "completion": f"w{i + 1}"}) + "\n" for i in range(5, 60))
    data = write(tmp_path / "pairs.jsonl", rows)
    assert cli.run(["tune", "--model", str(model), "--data", str(data), "--output", str(tmp_path / "run")]) == 2
    assert "is an encoder (bert): it cannot write text" in capsys.readouterr().err


def test_tune_evaluate_predict(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = reviews(tmp_path / "data.csv"), tmp_path / "run"
    flags = ["--method", "full", "--epochs", "1", "--lr", "1e-3", "--output-dir", str(run), "--json"]
    assert cli.run(["tune", "--model", str(model), "--data", str(data), *flags]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["learning_rate"] == 1e-3  # --lr is an alias
    assert manifest["class_names"] == ["bad", "good"]

    assert cli.run(["evaluate", str(run), "--data", str(data), "--json"]) == 0
    score = json.loads(capsys.readouterr().out)
    assert score["num_rows"] == 60
    assert score["metrics"]["accuracy"]["low"] <= score["metrics"]["accuracy"]["value"]

    texts, predicted = write(tmp_path / "new.csv", "id,text\n007,w5 w6\nNA,w7\n"), tmp_path / "out.jsonl"
    assert cli.run(["predict", str(run), str(texts), "-o", str(predicted)]) == 0
    rows = [json.loads(line) for line in predicted.read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == ["007", "NA"]
    assert all(row["label"] in ("bad", "good") and 0.5 <= row["probability"] <= 1 for row in rows)


def test_a_configuration_file_and_flags_over_it(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = reviews(tmp_path / "data.csv")
    keys = f"model_name_or_path: {model}\ndata: {data}\nmethod: lora\nlora_rank: 4\nmax_steps: 1\nseed: 3\n"
    config = write(tmp_path / "tune.yaml", keys)
    assert cli.run(["tune", "--config", str(config), "--seed", "5", "--output", str(tmp_path / "run"), "--json"]) == 0
    capsys.readouterr()
    from tunesmith.config import TuneConfig

    saved = TuneConfig.read(tmp_path / "run/config.yaml")
    assert (saved.lora_r, saved.seed, saved.max_steps) == (4, 5, 1)


def test_an_unknown_key_in_a_file_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path / "tune.yaml", "model: a\ndata: b\nlearning_rat: 1\n")
    assert cli.run(["tune", "--config", str(config)]) == 2
    assert f"{config}: unknown key 'learning_rat': did you mean 'learning_rate'?" in capsys.readouterr().err


def test_chat_streams_an_answer(
    decoder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = iter(["w5 w6", "/new", "w7", "/new", "w8 </s> w9", "w8 " * 70, "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(said))
    assert cli.run(["chat", str(decoder), "--max-new-tokens", "4"]) == 0
    shown = capsys.readouterr()
    answers = shown.out.strip("\n").split("\n")
    assert len(answers) == 3, "a control token in a question is only letters"
    assert all(answer for answer in answers)
    assert "takes 64 in all" in shown.err


def test_a_classifier_cannot_chat(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = reviews(tmp_path / "data.csv"), tmp_path / "run"
    given = ["--model", str(model), "--data", str(data), "--max-steps", "1", "--output", str(run)]
    assert cli.run(["tune", *given]) == 0
    assert cli.run(["chat", str(run)]) == 2
    assert "does classification, it cannot chat; use `tunesmith predict`" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["methods", "models", "datasets"])
def test_listings(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([command]) == 0
    shown = capsys.readouterr().out
    assert cli.run([command, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows
    assert all(row["name"] in shown for row in rows)


def test_help_describes_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    from tunesmith.config import TuneConfig

    assert cli.run(["tune", "--help"]) == 0
    shown = capsys.readouterr().out
    assert [name for name in TuneConfig.model_fields if f"--{name.replace('_', '-')}" not in shown] == []
    assert "Undefined" not in shown
    assert "[default: 0]" in shown.split("--seed")[1].splitlines()[0]


def test_listing_the_catalogue_does_not_load_torch() -> None:
    """It answers at once, as a list should."""
    code = "import sys; from tunesmith import cli; assert cli.run(['datasets']) == 0; sys.exit('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(tunesmith.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
