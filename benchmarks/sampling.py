"""K answers to each prompt, drawn at temperature 1: tunesmith beside transformers' own `generate`, on the same prompts,
every answer exactly as long (nothing stops early).

    python benchmarks/sampling.py [--repeats 3] [--only NAME,NAME] [--json FILE]

Only tunesmith returns log-probabilities; no one is asked to. What must agree, in float32, are the likeliest answers to
the first prompts: their ids, and the mean surprise (negative log-probability, nats) of each.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from contest import Contestant, Job, Result, main

MODEL = "smollm2-135m-instruct"
NUM_PROMPTS, PROMPT, NUM_ANSWERS, ANSWER = 16, 250, 8, 48
GREEDY_PROMPTS, GREEDY_TOKENS = 4, 24


def prepare(work: Path) -> None:
    """Stretches of the FAQ, their lengths a tenth around PROMPT."""
    from tunesmith.data import sources
    from tunesmith.models.load import load_network
    from tunesmith.records import Conversation

    network = load_network(MODEL, "generation")
    rows = [row for row in sources.load("construction-faq").rows if isinstance(row, Conversation)]
    text = " ".join(message.content for row in rows for message in row.messages)
    ids = network.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    rng = random.Random(0)
    lengths = [round(PROMPT * rng.uniform(0.9, 1.1)) for _ in range(NUM_PROMPTS)]
    starts = [rng.randrange(len(ids) - length) for length in lengths]
    prompts = [ids[start : start + length] for start, length in zip(starts, lengths, strict=True)]
    (work / "prompts.json").write_text(json.dumps(prompts))
    (work / "model.json").write_text(json.dumps(network.folder))


def run_tunesmith(dtype: str, work: Path) -> Result:
    from tunesmith.evaluation.tasks import open_network
    from tunesmith.models.generate import Decoding, sample
    from tunesmith.models.load import settle_precision

    kind = getattr(torch, dtype)
    prompts = json.loads((work / "prompts.json").read_text())
    network = open_network(MODEL)
    settle_precision(network, kind)
    with mock.patch("tunesmith.models.generate.stop_token_ids", return_value=()):
        greedy = sample(network, prompts[:GREEDY_PROMPTS], Decoding(GREEDY_TOKENS), kind)
        start = time.perf_counter()
        made = sample(network, prompts, Decoding(ANSWER, temperature=1.0), kind, NUM_ANSWERS)
        seconds = time.perf_counter() - start
    likeliest = [list(answers[0].ids) for answers in greedy]
    surprises = [-sum(answers[0].logprobs) / GREEDY_TOKENS for answers in greedy]
    counts = [len(answer.ids) for answers in made for answer in answers]
    return measured(prompts, counts, seconds, likeliest, surprises)


def run_transformers(per_call: int, attention: str, dtype: str, work: Path) -> Result:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    prompts = json.loads((work / "prompts.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(
        json.loads((work / "model.json").read_text()), dtype=getattr(torch, dtype), attn_implementation=attention
    )
    model.generation_config.eos_token_id = None

    def answer(chosen: list[list[int]], new: int, **how: Any) -> Any:
        longest = max(len(ids) for ids in chosen)
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in chosen])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in chosen])
        return model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=new, pad_token_id=0, **how)

    greedy = answer(
        prompts[:GREEDY_PROMPTS], GREEDY_TOKENS, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    likeliest = greedy.sequences[:, -GREEDY_TOKENS:]
    logprobs = torch.stack(greedy.logits, 1).float().log_softmax(-1).gather(-1, likeliest[..., None])
    drawing = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "num_return_sequences": NUM_ANSWERS}
    prompts.sort(key=len)
    counts, start = [], time.perf_counter()
    for first in range(0, len(prompts), per_call):
        made = answer(prompts[first : first + per_call], ANSWER, **drawing)
        counts += [ANSWER] * len(made)
    seconds = time.perf_counter() - start
    return measured(prompts, counts, seconds, likeliest.tolist(), (-logprobs.mean((1, 2))).tolist())


def measured(
    prompts: list[list[int]], counts: list[int], seconds: float, likeliest: list[list[int]], surprises: list[float]
) -> Result:
    from tunesmith.runtime import peak_memory

    seen, made = (
        hashlib.sha256(json.dumps(what).encode()).hexdigest() for what in ([sorted(prompts), counts], likeliest)
    )
    return Result(surprises, sum(counts), seconds, peak_memory(torch.device("cpu")), seen, made)


def ours(name: str, note: str, dtype: str) -> Contestant:
    return Contestant(name, note, partial(run_tunesmith, dtype), dtype, is_ours=True)


def peer(name: str, note: str, per_call: int, dtype: str = "float32", attention: str = "sdpa") -> Contestant:
    return Contestant(name, note, partial(run_transformers, per_call, attention, dtype), dtype)


CONTESTANTS = (
    ours("tunesmith", "its defaults where the chip has bfloat16", "bfloat16"),
    peer("hf-bf16-all", "sdpa, all prompts in one call", NUM_PROMPTS, "bfloat16"),
    peer("hf-bf16-4", "sdpa, four prompts a call", 4, "bfloat16"),
    peer("hf-bf16-1", "sdpa, one prompt a call: no padding", 1, "bfloat16"),
    ours("tunesmith-fp32", "its defaults elsewhere", "float32"),
    peer("hf-all", "sdpa, all prompts in one call", NUM_PROMPTS),
    peer("hf-4", "sdpa, four prompts a call", 4),
    peer("hf-1", "sdpa, one prompt a call: no padding", 1),
    peer("hf-eager", "four prompts a call, eager attention", 4, attention="eager"),
)
TITLE = f"{NUM_ANSWERS} answers of {ANSWER} tokens to each of {NUM_PROMPTS} prompts of some {PROMPT}, {MODEL}"
JOB = Job("sampling", TITLE, prepare, CONTESTANTS, ("tunesmith-fp32", "hf-4"), 1e-4)

if __name__ == "__main__":
    sys.exit(main([JOB], __doc__.splitlines()[0]))
