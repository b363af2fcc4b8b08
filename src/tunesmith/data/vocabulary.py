"""Tokenizers trained on texts: byte-level BPE, unigram with bytes as a fallback, WordPiece."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tunesmith.errors import InputError

Kind = Literal["bpe", "unigram", "wordpiece"]
END, PAD, UNKNOWN, MASK = "<|endoftext|>", "<|pad|>", "<unk>", "<mask>"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_tokenizer(
    texts: Iterable[str], kind: Kind, size: int, special: tuple[str, ...] = (), template: str | None = None
) -> PreTrainedTokenizerBase:
    """A tokenizer of at most `size` tokens, special ones included.

    BPE knows all bytes (Radford et al. 2019), unigram (Kudo 2018, arXiv 1804.10959) falls back to them, so neither
    meets anything unknown; WordPiece (Devlin et al. 2019, arXiv 1810.04805) is BERT's, in lower case and with its
    special tokens.

    Args:
        special: further tokens that stand for themselves, as those of a chat template.
        template: a chat template, saved with it.

    Raises:
        InputError: too few tokens for what every tokenizer of the kind has.
    """
    make = {"bpe": _bpe, "unigram": _unigram, "wordpiece": _wordpiece}[kind]
    least = {"bpe": 256 + 3, "unigram": 256 + 4, "wordpiece": len(BERT)}[kind] + len(special)
    if size < least:
        raise InputError(f"vocabulary is {size}; {kind} needs {least} for single bytes and special tokens alone")
    tokenizer = make(texts, size, special)
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def _bpe(texts: Iterable[str], size: int, special: tuple[str, ...]) -> PreTrainedTokenizerBase:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    named = [END, PAD, MASK, *special]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=named, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(texts, trainer)
    return _wrap(made, special, bos_token=END, eos_token=END, pad_token=PAD, mask_token=MASK)


def _unigram(texts: Iterable[str], size: int, special: tuple[str, ...]) -> PreTrainedTokenizerBase:
    made = Tokenizer(models.Unigram())
    # Blanks as SentencePiece has them; line ends and tabs are bytes or tokens of their own.
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    named = [END, PAD, UNKNOWN, MASK, *special]
    trainer = trainers.UnigramTrainer(
        vocab_size=size - len(BYTES), special_tokens=named, unk_token=UNKNOWN, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    made = _with_byte_fallback(made)
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("▁", " ")])
    return _wrap(made, special, bos_token=END, eos_token=END, pad_token=PAD, unk_token=UNKNOWN, mask_token=MASK)


def _with_byte_fallback(trained: Tokenizer) -> Tokenizer:
    """The same with 256 pieces for bytes, which the trainer does not make: less likely than any other."""
    import json

    saved: dict[str, Any] = json.loads(trained.to_str())
    vocabulary = saved["model"]["vocab"]
    worst = min(score for _, score in vocabulary) - 10.0
    saved["model"] |= {"vocab": vocabulary + [[byte, worst] for byte in BYTES], "byte_fallback": True}
    return Tokenizer.from_str(json.dumps(saved))


def _wordpiece(texts: Iterable[str], size: int, special: tuple[str, ...]) -> PreTrainedTokenizerBase:
    pad, unknown, first, last, mask = BERT
    made = Tokenizer(models.WordPiece(unk_token=unknown))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=[*BERT, *special], show_progress=False)
    made.train_from_iterator(texts, trainer)
    ends = [(token, made.token_to_id(token)) for token in (first, last)]
    made.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} $A {last} $B:1 {last}:1", special_tokens=ends
    )
    made.decoder = decoders.WordPiece()
    return _wrap(made, special, pad_token=pad, unk_token=unknown, cls_token=first, sep_token=last, mask_token=mask)


def _wrap(made: Tokenizer, special: tuple[str, ...], **named: str) -> PreTrainedTokenizerBase:
    more = {"additional_special_tokens": list(special)} if special else {}
    return PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False, **named, **more)
