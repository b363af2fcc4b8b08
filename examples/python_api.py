"""The Python API, one short example of each path. Takes a minute or two on two CPU cores.

    python examples/python_api.py [folder for the results]

Everything given here as a catalogue name may be a folder, a file, a hub name or, for data, a DataFrame.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pandas as pd

import tunesmith


def main(folder: Path) -> None:
    # Tune an encoder to classify. `run.network` is a transformers model with its tokenizer.
    run = tunesmith.tune(
        model="minilm-l6",
        data="vader-movies",
        method="lora",
        output=folder / "sentiment",
        max_train_samples=400,
        num_train_epochs=2,
        max_validation_samples=100,
        quiet=True,
    )
    print(f"tuned {run.manifest['trainable_parameters']:,} parameters in {run.outcome['train_seconds']:.0f} s")

    # Use it, now or in another process.
    run = tunesmith.load(folder / "sentiment")
    for found in tunesmith.predict(run, ["A joy from start to end.", "Two hours I will not get back."]):
        print(found["label"], f"{found['probability']:.2f}")

    # Score it on other labelled data: here a DataFrame of our own.
    frame = pd.DataFrame({"text": ["Works as it should.", "Broke on day one."], "label": ["positive", "negative"]})
    print("accuracy", tunesmith.evaluate(run, frame).metrics["accuracy"].value)

    # Was it worth it? Methods and baselines on one split.
    comparison = tunesmith.compare(
        model="minilm-l6",
        data="vader-movies",
        methods=["lora", "head-only"],
        baselines=["majority", "tf-idf"],
        output=folder / "comparison",
        max_train_samples=300,
        max_validation_samples=60,
        max_test_samples=200,
        num_train_epochs=1,
    )
    print(
        comparison.to_pandas()[["system", "accuracy", "accuracy_low", "accuracy_high"]].round(3).to_string(index=False)
    )
    print(comparison.verdict.reason)
    print("page", comparison.report)

    # Tune a decoder to answer. Rows of a list are data too.
    questions = [{"prompt": f"What is {a} and {a}?", "completion": f"{a + a}, plainly."} for a in range(40)]
    answers = tunesmith.tune(
        model="smollm2-135m-instruct",
        data=questions,
        method="lora",
        output=folder / "answers",
        max_steps=4,
        per_device_train_batch_size=8,
        quiet=True,
    )
    print(tunesmith.predict(answers, ["What is 3 and 3?"], max_new_tokens=12)[0]["answer"])


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="tunesmith-")))
