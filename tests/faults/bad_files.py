"""The corpus of files that cannot be used: one row each, made when the test runs."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Maker = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """A file (or what stands in its place), what is given beside it, and what must be said.

    `line` is the physical line that must be named, None where there is none; `mend` a part of the advice.
    """

    title: str
    name: str
    make: Maker
    line: int | None
    parts: tuple[str, ...]
    mend: str
    options: tuple[str, ...] = ()


CASES: list[Case] = []


def case(
    title: str,
    name: str,
    content: bytes | str | Maker,
    line: int | None,
    *parts: str,
    mend: str,
    options: tuple[str, ...] = (),
) -> None:
    raw = content.encode() if isinstance(content, str) else content
    make: Maker = (lambda path: _write(path, raw)) if isinstance(raw, bytes) else raw
    CASES.append(Case(title, name, make, line, parts, mend, options))


def _write(path: Path, raw: bytes) -> None:
    path.write_bytes(raw)


def rows(*objects: Any) -> str:
    return "".join(json.dumps(item) + "\n" for item in objects)


GOOD = {"text": "A fine text.", "label": "a"}
OTHER = {"text": "Another one.", "label": "b"}
GOOD_LINE = json.dumps(GOOD) + "\n"
MEANT = "Is it the"

# Nothing in it
for ending in ("csv", "tsv", "jsonl", "json", "txt", "ndjson"):
    case(f"empty {ending}", f"d.{ending}", b"", None, "0 bytes", mend=MEANT)
case("empty parquet", "d.parquet", b"", None, "not a whole Parquet file", mend="Fetch or write it again")
case("empty arrow", "d.arrow", b"", None, "not a whole Arrow file", mend="Fetch or write it again")
case("empty gz", "d.jsonl.gz", b"", None, "0 bytes", mend=MEANT)
case("gz of nothing", "d.jsonl.gz", gzip.compress(b""), None, "no rows", mend=MEANT)
for ending in ("csv", "jsonl", "txt", "json"):
    case(f"blank {ending}", f"d.{ending}", b" \n\n  \n", None, "only blank lines", mend=MEANT)
case("only a header, csv", "d.csv", "text,label\n", None, "only a header", mend=MEANT)
case("only a header, tsv", "d.tsv", "text\tlabel\n", None, "only a header", mend=MEANT)
case("an empty list", "d.json", "[]", None, "no rows", mend=MEANT)
case(
    "an empty table",
    "d.parquet",
    lambda path: pq.write_table(pa.table({"text": pa.array([], pa.string())}), path),
    None,
    "no rows",
    mend=MEANT,
)

# JSONL
ADVICE = "One object per line"
for title, text in {
    "a missing value": '{"text": }',
    "single quotes": "{'text': 'a'}",
    "a comma at the end": '{"text": "a",}',
    "two objects in one line": '{"text": "a"} {"text": "b"}',
    "cut off": '{"text": "a", "lab',
    "Python's None": '{"text": None}',
    "a comment": "// rows",
    "a tab inside a text": '{"text": "a\tb"}',
    "CSV": "text,label",
    "an open brace, printed over lines": "{",
}.items():
    case(f"JSONL with {title}", "d.jsonl", GOOD_LINE * 2 + text + "\n", 3, "not valid JSON", mend=ADVICE)
for title, text, words in (
    ("a list", '["a"]', "a list"),
    ("a string", '"a"', "a string"),
    ("null", "null", "null"),
    ("a number", "7", "the value 7"),
    ("true", "true", "the value True"),
):
    case(f"JSONL with {title}", "d.jsonl", GOOD_LINE + text + "\n", 2, words, mend="expected an object like")
for constant in ("NaN", "Infinity", "-Infinity"):
    line = f'{{"text": "a", "score": {constant}}}\n'
    case(f"JSONL with {constant}", "d.jsonl", GOOD_LINE + line, 2, f"{constant} is not a JSON", mend="Write null")
case("a key twice", "d.jsonl", '{"text": "a", "text": "b"}\n', 1, "the key 'text' stands twice", mend="twice")
case(
    "an inner key twice",
    "d.jsonl",
    '{"messages": [{"role": "a", "role": "b"}]}\n',
    1,
    "'role' stands twice",
    mend="twice",
)
case("half a character", "d.jsonl", '{"text": "a\\ud83d"}\n', 1, "surrogate", "character 2", mend="Write the whole")
case("half a character deep down", "d.jsonl", '{"messages": [{"content": "\\udc00"}]}\n', 1, "surrogate", mend="Write")
case("JSON without end of depth", "d.jsonl", '{"text": ' + "[" * 100_000 + "\n", 1, "nested too deeply", mend="deeply")
case("a broken line in the middle", "d.jsonl", GOOD_LINE * 9_000 + "{\n" + GOOD_LINE, 9_001, "JSON", mend=ADVICE)
case("a blank line before the broken one", "d.jsonl", "\n\n{\n", 3, "not valid JSON", mend=ADVICE)

# JSON
case("an object", "d.json", '{"text": "a"}', None, "0 lists", mend="use the ending .jsonl")
case("lines of objects", "d.json", GOOD_LINE * 2, 2, "Extra data", mend="use the ending .jsonl")
case("an object that is cut off", "d.json", '{"data": [{"text": "a"}', 1, "not valid JSON", mend=ADVICE)
case("a list that is not closed", "d.json", f"[\n{GOOD_LINE}", 3, "not closed", mend="Is it whole?")
case("a missing colon", "d.json", f'[\n{GOOD_LINE},\n{{"text" "a"}}]', 4, "not valid JSON", mend=ADVICE)
case("a number in the list", "d.json", f"[{GOOD_LINE},\n7]", 3, "the value 7", mend="expected an object like")
case("text before the list", "d.json", f"rows = [{GOOD_LINE}]", None, "expected a list", mend=".jsonl")

# CSV
case("a column twice", "d.csv", "text,text\na,b\n", 1, "'text' stands twice", mend="Rename one")
case("too many fields", "d.csv", "text,label\na,b\na,b,c\n", 3, "3 fields, the header has 2", mend="Put quotes")
case("too few fields", "d.csv", "text,label\na,b\nc\n", 3, "1 fields, the header has 2", mend="Add the missing")
case("a quote that is not closed", "d.csv", 'text,label\na,b\n"c,d\ne,f\n', 3, "never closed", mend="Close it")
case("text after a quote", "d.csv", 'text,label\n"a"b,c\n', 2, "after a closing quote", mend="Double each quote")
case("carriage returns alone", "d.csv", "text,label\ra,b\rc,d\r", 1, r"lines end with \r", mend="Save the file")
case("UTF-16 of plain letters", "d.csv", "text,label\na,b\n".encode("utf-16-le"), 1, "NUL", mend="--encoding utf-16")
case("lines within quotes", "d.csv", 'text,label\n"two\nlines",a\nb\n', 4, "1 fields", mend="Add the missing")
case("too few fields, tsv", "d.tsv", "text\tlabel\na\tb\nc\n", 3, "1 fields", mend="Add the missing")
case("far down", "d.csv", "text,label\n" + "a,b\n" * 5_000 + "c\n", 5_002, "1 fields", mend="Add the missing")

# Encodings
case("latin-1", "d.csv", b"text,label\nca\xe9,b\n", 2, "byte 0xe9 at offset 13", mend="--encoding cp1252")
case(
    "cp1252",
    "d.jsonl",
    b'{"text": "a", "label": "x"}\n{"text": "\x93b\x94"}\n',
    2,
    "byte 0x93",
    mend="--encoding cp1252",
)
case(
    "UTF-16 without a mark", "d.csv", "tèxt,label\na,b\n".encode("utf-16-le"), 1, "not UTF-8", mend="--encoding utf-16"
)
case(
    "half a character at the end",
    "d.txt",
    "one\ntwo é".encode()[:-1],
    2,
    "byte 0xc3",
    mend="--encoding",
    options=("--task", "text"),
)
case("one bad byte", "d.jsonl", GOOD_LINE.encode() * 50 + b'{"text": "\xff"}\n', 51, "byte 0xff", mend="--encoding")
case(
    "an unknown encoding",
    "d.csv",
    "text,label\na,b\n",
    None,
    "unknown 'utf-9'",
    mend="utf-8",
    options=("--encoding", "utf-9"),
)
case(
    "another encoding",
    "d.csv",
    b"text,label\na,b\n\xe9",
    1,
    "not utf-16",
    mend="--encoding",
    options=("--encoding", "utf-16"),
)

# Compressed
packed = gzip.compress(GOOD_LINE.encode() * 5_000, mtime=0)
AGAIN = "Fetch or pack it again"
case("a truncated gz", "d.jsonl.gz", packed[: len(packed) // 2], None, "damaged after", mend=AGAIN)
case("a gz that is none", "d.jsonl.gz", GOOD_LINE * 3, None, "damaged after 0 B", mend=AGAIN)
case("a flipped gz", "d.jsonl.gz", packed[:40] + b"\xff" * 40 + packed[80:], None, "damaged", mend=AGAIN)
case("a bz2 that is none", "d.csv.bz2", "text,label\n", None, "damaged", mend=AGAIN)
case(
    "a truncated bz2", "d.csv.bz2", bz2.compress(b"text,label\n" + b"a,b\n" * 99_999)[:-30], None, "damaged", mend=AGAIN
)
case("a zst that is none", "d.jsonl.zst", GOOD_LINE, None, "damaged", mend=AGAIN)
case("a bomb", "d.jsonl.gz", gzip.compress(b" " * 150_000_000, mtime=0), None, "unpack to more", mend="if you trust it")


def _parquet(**columns: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def _arrow(**columns: Any) -> bytes:
    sink = io.BytesIO()
    table = pa.table(columns)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


WRITE = "Fetch or write it again"
whole = _parquet(text=["a", "b"] * 500, label=["x", "y"] * 500)
stream = _arrow(text=["a", "b"] * 500, label=["x", "y"] * 500)
case("a truncated Parquet", "d.parquet", whole[:-20], None, "not a whole Parquet", mend=WRITE)
case("a CSV called Parquet", "d.parquet", "text,label\na,b\n", None, "not a whole Parquet", mend=WRITE)
case("a Parquet with a hole", "d.parquet", whole[:8] + b"\x00" * 60 + whole[68:], None, "Parquet", mend=WRITE)
case("a truncated Arrow", "d.arrow", stream[: len(stream) // 2], None, "not a whole Arrow", mend=WRITE)
case("a text called Arrow", "d.arrow", GOOD_LINE, None, "not a whole Arrow", mend=WRITE)
case(
    "a null in Parquet",
    "d.parquet",
    _parquet(text=["a", None], label=["x", "y"]),
    2,
    "'text' is empty",
    mend="leave the row out",
)

# Paths
case(
    "no such file",
    "d.csv",
    lambda path: _write(path.with_name("e.csv"), b"x"),
    None,
    "no such file",
    mend="did you mean 'e.csv'",
)
case("no such folder", "sub/d.csv", lambda path: None, None, "nor its folder", mend="Check the path")
case("an empty folder", "d", Path.mkdir, None, "no file that can be read", mend=".csv")
case("a pattern without a hit", "*.csv", lambda path: None, None, "fits no file", mend="check the folder")
case(
    "a link in a circle",
    "d.csv",
    lambda path: os.symlink(path, path),
    None,
    "cannot be read",
    mend="Give the file itself",
)
case(
    "a link to nothing",
    "d.csv",
    lambda path: os.symlink(path.with_name("gone.csv"), path),
    None,
    "is not there",
    mend="Mend the link",
)
case(
    "no list of files",
    "d.csv,e.csv",
    lambda path: _write(path.with_name("d.csv"), b"text,label\na,b\n"),
    None,
    "e.csv: no such file",
    mend="did you mean",
)
for ending in ("xlsx", "pkl", "docx", "bin"):
    case(f"a {ending}", f"d.{ending}", b"PK\x03\x04", None, f"unknown kind of file '.{ending}'", mend="Readable: .csv")
case("a file without an ending", "data", b"text,label\n", None, "unknown kind of file ''", mend="Readable: .csv")
case("a pipe", "d.csv", os.mkfifo, None, "no ordinary file", mend="Write its rows")


def _mixed(path: Path) -> None:
    path.mkdir()
    (path / "a.csv").write_text("text,label\na,b\n")
    (path / "b.jsonl").write_text(GOOD_LINE)


case("a folder of several kinds", "d", _mixed, None, "several kinds", mend="Give those that are meant")

# Columns
case("no format", "d.csv", "one,two\na,b\n", None, "fit no format", mend="Name them with --columns")
case("texts alone", "d.jsonl", rows({"text": "a"}), None, "fit no format", mend="--task text")
case(
    "no such column",
    "d.csv",
    "text,label\na,b\n",
    None,
    "no column 'txt'",
    mend="did you mean 'text'",
    options=("--columns", "text=txt"),
)
case(
    "no such part",
    "d.csv",
    "text,label\na,b\n",
    None,
    "unknown part 'txt'",
    mend="did you mean 'text'",
    options=("--columns", "txt=text"),
)
case("a column missing in a row", "d.jsonl", rows(GOOD, OTHER, {"text": "c"}), 3, "no 'label'", mend="Add it")
case(
    "an empty group",
    "d.csv",
    "text,label,who\na,x,1\nb,y,\n",
    3,
    "'who' is empty",
    mend="Fill it in",
    options=("--columns", "group=who"),
)
LEAVE = "leave the row out"
case("an empty text", "d.csv", "text,label\na,x\n,y\n", 3, "'text' is empty", mend=LEAVE)
case("a blank text", "d.jsonl", rows(GOOD, {"text": " \n", "label": "b"}), 2, "'text' is empty", mend=LEAVE)
case("a text that is null", "d.jsonl", rows(GOOD, {"text": None, "label": "b"}), 2, "'text' is empty", mend=LEAVE)
case(
    "a text that is a number",
    "d.jsonl",
    rows(GOOD, {"text": 7, "label": "b"}),
    2,
    "the number 7",
    mend="Write it in quotes",
)
case(
    "a text that is a list",
    "d.jsonl",
    rows(GOOD, {"text": ["a"], "label": "b"}),
    2,
    "is list",
    mend="Write it in quotes",
)
case("an empty label", "d.csv", "text,label\na,x\nb,\n", 3, "'label' is empty", mend=LEAVE)
case("a label that is null", "d.jsonl", rows(GOOD, {"text": "b", "label": None}), 2, "'label' is empty", mend=LEAVE)
case(
    "a label that is no name",
    "d.jsonl",
    rows(GOOD, {"text": "b", "label": 1.5}),
    2,
    "the number 1.5",
    mend="--task regression",
)
case("one class", "d.csv", "text,label\na,x\nb,x\n", None, "the one label 'x'", mend="Add rows of another class")
case("a score that is a word", "d.csv", "text,score\na,1\nb,many\n", 3, "'many'", mend="Mend it")
case("a score that is nan", "d.csv", "text,score\na,1\nb,nan\n", 3, "'nan'", mend="Mend it")
case("a score without end", "d.csv", "text,score\na,1\nb,inf\n", 3, "'inf'", mend="Mend it")
case(
    "a score that is true",
    "d.jsonl",
    rows({"text": "a", "score": 1}, {"text": "b", "score": True}),
    2,
    "True",
    mend="Mend it",
)
case("an empty score", "d.csv", "text,score\na,1\nb,\n", 3, "''", mend="Mend it")
MANY = {"text": "a", "labels": ["x"]}
case("a label twice", "d.jsonl", rows(MANY, {"text": "b", "labels": ["x", "x"]}), 2, "'x' twice", mend="Name it once")
case(
    "labels that are none",
    "d.jsonl",
    rows(MANY, {"text": "b", "labels": "x"}),
    2,
    "is str",
    mend="a list of class names",
)
case("a label among labels is empty", "d.jsonl", rows(MANY, {"text": "b", "labels": [""]}), 2, "labels[0]", mend=LEAVE)
TAGGED = {"words": ["a", "b"], "tags": ["O", "X"]}
case(
    "a tag too few",
    "d.jsonl",
    rows(TAGGED, {"words": ["a", "b"], "tags": ["O"]}),
    2,
    "2 words with 1 tags",
    mend="each word needs",
)
case("no words", "d.jsonl", rows(TAGGED, {"words": [], "tags": []}), 2, "0 words", mend="each word needs")
case(
    "a word that is none",
    "d.jsonl",
    rows(TAGGED, {"words": ["a", 3], "tags": ["O", "O"]}),
    2,
    "words[1]",
    mend="Write it in quotes",
)

# Turns


def turns(*pairs: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in pairs]}


Q, A, S = ("user", "q"), ("assistant", "a"), ("system", "s")
CHAT = turns(Q, A)
JOIN = "Join two turns"
case("messages that are a text", "d.jsonl", rows(CHAT, {"messages": "hi"}), 2, "not a list of turns", mend='[{"role"')
case("no messages", "d.jsonl", rows(CHAT, {"messages": []}), 2, "not a list of turns", mend='[{"role"')
case("a turn that is a text", "d.jsonl", rows(CHAT, {"messages": ["hi"]}), 2, "turn 1", "str", mend="{role, content}")
case(
    "a turn without a role", "d.jsonl", rows(CHAT, {"messages": [{"content": "q"}]}), 2, "no role", mend="{from, value}"
)
case("an unknown role", "d.jsonl", rows(CHAT, turns(("narrator", "q"), A)), 2, "role 'narrator'", mend="known: system")
case("two questions in a row", "d.jsonl", rows(CHAT, turns(Q, Q, A)), 2, "turn 2 is the user's", mend=JOIN)
case("two answers in a row", "d.jsonl", rows(CHAT, turns(Q, A, A)), 2, "turn 3 is the assistant's", mend=JOIN)
case("an answer first", "d.jsonl", rows(CHAT, turns(A)), 2, "turn 1 is the assistant's", mend=JOIN)
case("a question last", "d.jsonl", rows(CHAT, turns(Q, A, Q)), 2, "the last turn", mend="Add the answer")
case("a system turn later", "d.jsonl", rows(CHAT, turns(Q, A, S, Q, A)), 2, "turn 3 is the system's", mend=JOIN)
case("two system turns", "d.jsonl", rows(CHAT, turns(S, S, Q, A)), 2, "turn 2 is the system's", mend=JOIN)
case("a tool's turn first", "d.jsonl", rows(CHAT, turns(("tool", "t"), A)), 2, "turn 1 is the tool's", mend=JOIN)
case("a content that is null", "d.jsonl", rows(CHAT, turns(Q, ("assistant", None))), 2, "content of turn 2", mend=LEAVE)
case("an empty answer", "d.jsonl", rows(CHAT, turns(Q, ("assistant", " "))), 2, "content of turn 2", mend=LEAVE)
case("a content that is a list", "d.jsonl", rows(CHAT, turns(Q, ("assistant", ["a"]))), 2, "is list", mend="quotes")
case(
    "tools that are no JSON",
    "d.jsonl",
    rows({**CHAT, "tools": "["}),
    1,
    "'tools' is not valid JSON",
    mend="Give a list",
)
case(
    "tools that are no list", "d.jsonl", rows({**CHAT, "tools": {"a": 1}}), 1, "'tools' is dict", mend="expected a list"
)
SHARED = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
case(
    "an unknown speaker",
    "d.jsonl",
    rows(SHARED, {"conversations": [{"from": "x", "value": "q"}]}),
    2,
    "role 'x'",
    mend="known:",
)
case("an empty output", "d.jsonl", rows({"instruction": "q", "output": ""}), 1, "'output' is empty", mend=LEAVE)
case(
    "a history of texts",
    "d.jsonl",
    rows({"instruction": "q", "output": "a", "history": ["x"]}),
    1,
    "history[0]",
    mend="pair of",
)
case("an empty completion", "d.csv", "prompt,completion\nq,a\nr,\n", 3, "'completion' is empty", mend=LEAVE)

# Rankings and the rest
PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
case("equal answers", "d.jsonl", rows(PAIR, {**PAIR, "rejected": "a"}), 2, "are equal", mend="Leave the row out")
case("no prompt", "d.jsonl", rows({"chosen": "a", "rejected": "b"}), 1, "no prompt", mend="add a column 'prompt'")
DIFFERENT = {"chosen": CHAT["messages"], "rejected": turns(("user", "r"), A)["messages"]}
case("different prompts", "d.jsonl", rows(DIFFERENT), 1, "different prompts", mend="must be equal")
RANKED = {"prompt": "q", "answers": ["a", "b"]}
case("one answer", "d.jsonl", rows(RANKED, {"prompt": "q", "answers": ["a"]}), 2, "1 answers", mend="two or more")
case("ranks for others", "d.jsonl", rows({**RANKED, "ranks": [1]}), 1, "'ranks' is [1]", mend="give one whole number")
case(
    "ranks that are words", "d.jsonl", rows({**RANKED, "ranks": ["a", "b"]}), 1, "'ranks'", mend="give one whole number"
)
case("ranks that are true", "d.jsonl", rows({**RANKED, "ranks": [True, False]}), 1, "'ranks'", mend="whole number")
JUDGED = {"prompt": "q", "completion": "a", "label": True}
case(
    "a verdict that is none",
    "d.jsonl",
    rows(JUDGED, {**JUDGED, "label": "perhaps"}),
    2,
    "'perhaps'",
    mend="expected true or false",
)
PASSAGE = {"context": "It is red.", "question": "Colour?", "answers": {"text": ["red"], "answer_start": [6]}}
case(
    "no answer to a passage",
    "d.jsonl",
    rows(PASSAGE, {**PASSAGE, "answers": {"text": []}}),
    2,
    "no answer",
    mend="Write one",
)
WRONG = {**PASSAGE, "answers": {"text": ["red"], "answer_start": [2]}}
case("an answer elsewhere", "d.jsonl", rows(PASSAGE, WRONG), 2, "at character 2", mend="Starts count characters")
case("one language", "d.jsonl", rows({"translation": {"en": "a"}}), 1, "no pair of languages", mend='{"en"')
case("an empty translation", "d.jsonl", rows({"translation": {"en": "a", "de": ""}}), 1, "translation.de", mend=LEAVE)
case("an empty summary", "d.csv", "article,highlights\nlong,short\nlong,\n", 3, "'highlights' is empty", mend=LEAVE)

# Many at once
case("thirty bad rows", "d.jsonl", (GOOD_LINE + "{\n") * 30, 2, "30 problems", "and 10 more", ":40:", mend=ADVICE)
case(
    "of reader and converter",
    "d.jsonl",
    GOOD_LINE + "{\n" + rows({"text": "", "label": "b"}),
    2,
    "2 problems",
    ":3:",
    mend=LEAVE,
)
