"""Passages that may hold the answer to a question: from training rows or a folder of documents, found by BM25
(Robertson & Zaragoza 2009) over words. With them before its question a model answers by what it reads (Lewis et al.
2020, arXiv 2005.11401)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import InputError
from tunesmith.evaluation.answers import overlap_f1, squad_words
from tunesmith.evaluation.prompting import QUESTION_AND_ANSWER, solved
from tunesmith.records import Examples

NUM_PASSAGES = 3
SUFFIXES = (".txt", ".md")
# A passage of documents: whole paragraphs as long as they stay below, in words; a longer paragraph is cut.
WORDS = 120


def passages_of(train: Examples) -> list[str]:
    """Each training row as a passage: its question and its answer."""
    asks, answers = QUESTION_AND_ANSWER
    return [f"{asks}: {question}\n{answers}: {answer}" for question, answer in solved(train)]


def read_passages(folder: Path) -> list[str]:
    """The passages of the documents (.txt, .md) in a folder and the folders in it, in the order of their names.

    Raises:
        InputError: it is no folder, holds no such document, or one of them is not UTF-8.
    """
    if not folder.is_dir():
        raise InputError(f"documents '{folder}' is no folder. Give one with {' or '.join(SUFFIXES)} files")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    passages = [passage for file in files for passage in cut(_read(file))]
    if not passages:
        raise InputError(f"documents '{folder}' holds no text in {' or '.join(SUFFIXES)} files")
    return passages


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 at byte {error.start}. Save it as UTF-8") from error


def cut(text: str) -> list[str]:
    """Paragraphs (blank lines between them) put together to passages of up to 120 words."""
    passages: list[str] = []
    room = 0
    for paragraph in (words for part in text.split("\n\n") for words in _pieces(part.split())):
        if len(paragraph) <= room:
            passages[-1] += "\n" + " ".join(paragraph)
        else:
            passages.append(" ".join(paragraph))
            room = WORDS
        room -= len(paragraph)
    return passages


def _pieces(words: list[str]) -> list[list[str]]:
    return [words[start : start + WORDS] for start in range(0, len(words), WORDS)]


def find_passages(passages: Sequence[str], questions: Sequence[str], count: int = NUM_PASSAGES) -> list[list[str]]:
    """The `count` best passages for each question, the best one last: next to the question."""
    index = bm25s.BM25()
    index.index([squad_words(passage) for passage in passages], show_progress=False)
    scores = [_score(index, squad_words(question)) for question in questions]
    return [[passages[place] for place in row.argsort(kind="stable")[-count:]] for row in scores]


def _score(index: bm25s.BM25, words: list[str]) -> NDArray[np.floating[Any]]:
    """(passages,): 0 where no word of the question stands in any."""
    known = [word for word in words if word in index.vocab_dict]
    scores: NDArray[np.floating[Any]] = index.get_scores(known) if known else np.zeros(index.scores["num_docs"])
    return scores


def best_passages(passages: Sequence[str], answers: Sequence[str]) -> list[list[str]]:
    """Of each row the passage with most of its right answer's words (token F1): no search can know it, so what is
    answered with it bounds what better search would bring."""
    known = [squad_words(passage) for passage in passages]
    likest = (max(range(len(known)), key=lambda place: overlap_f1(known[place], squad_words(true))) for true in answers)
    return [[passages[place]] for place in likest]
