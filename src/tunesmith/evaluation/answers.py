"""What can be counted in one answer beside the right one."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

Floats = NDArray[np.floating[Any]]

ROUGES = ("rouge1", "rouge2", "rougeL")
ARTICLES = re.compile(r"\b(a|an|the)\b")
REPEATED_WORDS, TIMES = 4, 3


@dataclass(frozen=True)
class Answers:
    """Of R answers, NaN (0 for counts) where none was made.

    exact, token_f1   (R,) as SQuAD has them (Rajpurkar et al. 2016, arXiv 1606.05250)
    rouge_1, _2, _l   (R,) F with Porter's stemmer on (Lin 2004)
    chrf              (R,) chrF of 6 letters (Popovic 2015), 0 to 100
    bleu              matching and all n-grams (R, 4) each, and the lengths of both (R, 2), in sacrebleu's tokens
    words             (R, 2) of the answer, and of the right one
    empty, repeated   (R,) 1 where it is so: no word in it; four words in a row that stand there three times
    """

    exact: Floats
    token_f1: Floats
    rouge_1: Floats
    rouge_2: Floats
    rouge_l: Floats
    chrf: Floats
    bleu: tuple[Floats, Floats, Floats]
    words: Floats
    empty: Floats
    repeated: Floats


def count_answers(references: Sequence[str], answers: Sequence[str | None]) -> Answers:
    rouge, bleu, chrf = RougeScorer(ROUGES, use_stemmer=True), BLEU(effective_order=True), CHRF()
    named: dict[str, Floats] = {
        name: np.full(len(references), np.nan) for name in ("exact", "token_f1", *ROUGES, "chrf", "empty", "repeated")
    }
    correct, total = np.zeros((len(references), 4)), np.zeros((len(references), 4))
    lengths, words = np.zeros((len(references), 2)), np.zeros((len(references), 2))
    for row, (reference, answer) in enumerate(zip(references, answers, strict=True)):
        if answer is None:
            continue
        said, true = squad_words(answer), squad_words(reference)
        values = {name: score.fmeasure for name, score in rouge.score(reference, answer).items()}
        values |= {"exact": said == true, "token_f1": overlap_f1(said, true)}
        values |= {"chrf": chrf.sentence_score(answer, [reference]).score}
        values |= {"empty": not answer.split(), "repeated": repeats(answer)}
        for name, value in values.items():
            named[name][row] = value
        counted = bleu.sentence_score(answer, [reference])
        correct[row], total[row], lengths[row] = counted.counts, counted.totals, (counted.sys_len, counted.ref_len)
        words[row] = len(answer.split()), len(reference.split())
    rouges = dict(zip(("rouge_1", "rouge_2", "rouge_l"), (named.pop(name) for name in ROUGES), strict=True))
    return Answers(**named, **rouges, bleu=(correct, total, lengths), words=words)


def agreement(answers: Sequence[str]) -> Floats:
    """(K,) mean ROUGE-L F of each answer with the others: how good it is to be expected if each of them is as likely to
    be right (minimum Bayes risk; Eikema & Aziz 2020, arXiv 2005.10283). 0 of one alone."""
    rouge = RougeScorer(["rougeL"], use_stemmer=True)
    likeness = np.zeros((len(answers), len(answers)))
    for one in range(len(answers)):
        for other in range(one):
            score = rouge.score(answers[one], answers[other])["rougeL"].fmeasure
            likeness[one, other] = likeness[other, one] = score
    return likeness.sum(1) / max(1, len(answers) - 1)


def squad_words(text: str) -> list[str]:
    """Words in lower case, without punctuation and articles."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return ARTICLES.sub(" ", bare).split()


def overlap_f1(said: Sequence[str], true: Sequence[str]) -> float:
    """Of words as in bags; where one of them is empty 1 if both are."""
    if not said or not true:
        return float(list(said) == list(true))
    shared = sum((Counter(said) & Counter(true)).values())
    return 2 * shared / (len(said) + len(true))


def repeats(text: str) -> bool:
    words = text.split()
    runs = Counter(tuple(words[at : at + REPEATED_WORDS]) for at in range(len(words) - REPEATED_WORDS + 1))
    return max(runs.values(), default=0) >= TIMES
