"""A pretrained model by catalogue name, hub name or folder, made ready for one task."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from tunesmith import assets
from tunesmith.data.ids import stop_token_ids
from tunesmith.data.sides import set_start
from tunesmith.errors import InputError, nearest
from tunesmith.models import seq2seq
from tunesmith.models.attention import PACKED
from tunesmith.models.dropout import use_cheap_dropout
from tunesmith.models.heads import (
    TASK_HEADS,
    choose_class,
    draw_reward_head,
    head_settings,
    is_encoder,
    name_head_modules,
    refuse_unfit,
    rename_weights,
)
from tunesmith.models.hub import fetch_model
from tunesmith.models.lean import use_lean_layers
from tunesmith.models.linear import use_lean_linears
from tunesmith.models.safety import ADAPTER_CONFIG, MODEL_CONFIG, MODEL_WEIGHTS, check_folder, has_weights
from tunesmith.models.template import check_template
from tunesmith.models.weights import fingerprint, read_json, refuse_broken
from tunesmith.models.wrap import identify, merge
from tunesmith.records import JUDGED, Task
from tunesmith.runtime import prepare_memory

# Used, and saved with the run, when a base model brings no chat template: plain text that any
# tokenizer can express, one blank line between question and answer, end-of-text after each answer,
# and beginning-of-text first where the tokenizer puts it before texts by itself.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ message['content'] + '\n\n' }}{% endif %}"
    "{% endfor %}"
)


@dataclass
class Network:
    """A model with what belongs to it.

    model        the plain transformers module that computes; PEFT layers may sit inside it
    wrapper      what saves it: a PeftModel, or the model itself
    prompt       gives the virtual tokens (P, D) put before every row, or None
    past         gives keys and values (2, L, K, P, W) of virtual tokens put before every row, or None
    prefix       knows what the frozen blocks say of rows, while training; or None
    source       the name as the user gave it; `folder` is where it was loaded from
    new_modules  names of modules that had no pretrained weights
    fingerprint  sha256 of the pretrained weights as they were loaded, without new modules
    start        trained tensors as they began, by name, where saving needs them
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    class_names: tuple[str, ...]
    source: str
    folder: str
    new_modules: tuple[str, ...] = ()
    wrapper: nn.Module | None = None
    prompt: Any = None
    past: Any = None
    prefix: Any = None
    num_virtual: int = 0
    notes: list[str] = field(default_factory=list)
    fingerprint: str = ""
    start: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def root(self) -> nn.Module:
        """What holds every parameter, by the names that files and logs have: the PEFT model, or the model itself."""
        return self.model if self.wrapper is None else self.wrapper

    @property
    def body(self) -> PreTrainedModel:
        """The pre-trained part, without the head."""
        return self.model.base_model

    @property
    def head_modules(self) -> tuple[str, ...]:
        """Last name parts of the modules that every method trains; empty for generation."""
        return name_head_modules(self.model, self.task)

    def is_new(self, name: str) -> bool:
        """Whether a parameter had no pretrained weights."""
        return any(name == new or name.startswith(f"{new}.") for new in self.new_modules)

    @property
    def is_decoder(self) -> bool:
        """It never looks ahead; of an encoder-decoder only one half is so."""
        return not is_encoder(self.model.config) and not self.model.config.is_encoder_decoder

    @property
    def max_positions(self) -> int:
        """Longest row the model can take, in tokens; of an encoder-decoder its longest source, and longest target."""
        if self.model.config.is_encoder_decoder:
            return seq2seq.longest_side(self.model.config)
        limit = int(getattr(self.model.config, "max_position_embeddings", 0) or 2048)
        return limit - position_offset(self.model)


def position_offset(model: PreTrainedModel) -> int:
    """The first position id of a row: 0, but `padding_idx + 1` in the RoBERTa family."""
    embeddings: Any = getattr(model.base_model, "embeddings", None)
    if hasattr(embeddings, "create_position_ids_from_input_ids"):
        return int(embeddings.padding_idx) + 1
    return 0


def resolve_model(name: str) -> str:
    """The folder behind what the user gave; a hub model is fetched into the hub's cache.

    Raises:
        InputError: neither a catalogue name, nor a folder of a model or adapter, nor a hub name.
    """
    if assets.is_model(name):
        return str(assets.model_folder(name))
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / MODEL_CONFIG).is_file() and not (folder / ADAPTER_CONFIG).is_file():
            raise InputError(f"{name}: the folder holds no {MODEL_CONFIG}, so it is not a model")
        return str(folder)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return str(fetch_model(name))
    raise InputError(
        f"unknown model '{name}': {nearest(name, assets.MODELS)}. "
        "A folder of a saved model or a hub name (owner/name) works too"
    )


def find_base(source: str, given: str) -> str:
    """The folder of the whole model: `source`, or for an adapter the base that it names. Both are checked.

    Raises:
        InputError: a hostile or damaged folder, or an adapter whose base cannot be found.
    """
    folder = Path(source)
    check_folder(folder, given)
    if not (folder / ADAPTER_CONFIG).is_file():
        return source
    name = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not name or not isinstance(name, str):
        raise InputError(f"{folder / ADAPTER_CONFIG}: names no base model (base_model_name_or_path). Write it there")
    what = f"'{given}' is an adapter for the base model '{name}'"
    try:
        base = resolve_model(name)
        check_folder(Path(base), name)
    except InputError as error:
        raise InputError(f"{what}, which cannot be used: {error}") from error
    if (Path(base) / ADAPTER_CONFIG).is_file():
        raise InputError(f"{what}, which is an adapter itself. Merge one into its base and save the whole model first")
    return base


def load_config(source: str, given: str) -> PreTrainedConfig:
    """The model's configuration, an adapter's being its base's; or an InputError that says what was tried."""
    base = find_base(source, given)
    with _naming(f"cannot load model '{given}'", f"Give a catalogue name ({', '.join(assets.MODELS)}), or another"):
        return AutoConfig.from_pretrained(base, trust_remote_code=False)


@contextmanager
def _naming(what: str, mend: str) -> Iterator[None]:
    """On a damaged configuration transformers raises whatever came of it."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(f"{what}: {first_line}. {mend}") from error


def load_network(name: str, task: Task, class_names: Sequence[str] = (), dtype: torch.dtype | str = "auto") -> Network:
    """Loads model and tokenizer for a task; seed torch before, a new head is drawn at random.

    Args:
        name: catalogue name, folder, or hub name.
        class_names: their order gives the class ids; empty for regression and generation.
        dtype: of the loaded weights; "auto" is the checkpoint's own.

    Raises:
        InputError: unknown model, or one that cannot do the task, or weights that do not fit it.
    """
    prepare_memory()
    source = resolve_model(name)
    base = find_base(source, name)
    refuse_unfit(load_config(base, name), task, name)
    model, info = _read_model(base, name, task, class_names, dtype)
    network = enclose(model, source, name, task, class_names)
    _check_loaded(network, info)
    if task == "ranking" and network.new_modules:
        draw_reward_head(model)
    network.fingerprint = fingerprint(model, network.new_modules, name)
    if base != source:
        _merge(network, Path(source))
    use_our_layers(network)
    return network


def enclose(model: PreTrainedModel, source: str, name: str, task: Task, class_names: Sequence[str]) -> Network:
    """A model with its tokenizer from the folder `source`, called `name` by the user."""
    return Network(
        model=model,
        tokenizer=load_tokenizer(source, name, task),
        task=task,
        class_names=tuple(class_names),
        source=name,
        folder=source,
        wrapper=model,
    )


def use_our_layers(network: Network) -> None:
    """Packed attention, and layers that cost less than the ones they replace."""
    _agree_on_pad(network)
    network.model.set_attn_implementation(PACKED)
    use_cheap_dropout(network.model)
    use_lean_layers(network.model)
    use_lean_linears(network.model)
    if network.model.config.is_encoder_decoder:
        seq2seq.settle_config(network.model.config)
        seq2seq.use_row_biases(network.model)


def _read_model(
    folder: str, given: str, task: Task, class_names: Sequence[str], dtype: torch.dtype | str
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, and what transformers says of keys that were missing or of another size."""
    if not has_weights(Path(folder)):
        raise InputError(f"'{given}': no weights in {folder}; {' or '.join(MODEL_WEIGHTS)} should be there")
    # The attention is exchanged afterwards: what the configuration asks for would be imported, or fetched, in vain.
    kwargs: dict[str, Any] = {"dtype": dtype, "output_loading_info": True, "attn_implementation": "eager"}
    kwargs |= {"use_safetensors": True, "ignore_mismatched_sizes": True}
    config = load_config(folder, given)
    if task in TASK_HEADS:
        kwargs |= head_settings(task, class_names)
    renamed = rename_weights(config, task)
    if renamed:
        kwargs["key_mapping"] = renamed
    with _naming(f"cannot load the weights of '{given}'", "Fetch the model again"), quietly():
        model, info = choose_class(config, task).from_pretrained(folder, trust_remote_code=False, **kwargs)
    if renamed:  # else saving would give them their old names, by which plain transformers does not find them
        model._weight_conversions = None
    return model, info


def _merge(network: Network, folder: Path) -> None:
    """An adapter given as a model: its base with the adapter's changes merged into the weights."""
    with quietly():
        network.model = network.wrapper = merge(network.model, folder)
    network.model.name_or_path = str(folder)  # what PEFT writes down as the base of a further adapter
    saved = read_json(folder / ADAPTER_CONFIG).get("modules_to_save") or ()
    network.new_modules = tuple(name for name in network.new_modules if not set(name.split(".")) & set(saved))
    refuse_broken(network.model.named_parameters(), network.source)
    # Not of the merged weights, which are rounded differently from one machine to the next.
    network.fingerprint = hashlib.sha256(f"{network.fingerprint} {identify(folder)}".encode()).hexdigest()


@contextmanager
def quietly() -> Iterator[None]:
    """No bars and remarks of transformers, which reports a new head as if it were a fault; we check ourselves."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load_tokenizer(source: str, given: str, task: Task) -> PreTrainedTokenizerBase:
    """The tokenizer, with a pad token and, where a decoder reads or writes answers, a chat template. An adapter without
    one has its base's."""
    folder = Path(source)
    check_folder(folder, given)
    if not any(folder.glob("*token*")) and not any(folder.glob("vocab*")):
        folder = Path(find_base(source, given))
    with _naming(f"cannot load the tokenizer of '{given}'", "Fetch its files again"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    check_template(tokenizer.chat_template, given)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    base = Path(find_base(source, given))
    config = load_config(source, given) if (base / MODEL_CONFIG).is_file() else PreTrainedConfig()
    if config.is_encoder_decoder and task not in TASK_HEADS:
        set_start(tokenizer, seq2seq.find_start(config, base, given))
        tokenizer.chat_template = None  # a source and a target are texts of their own
    elif JUDGED[task] in ("answers", "rankings") and (task == "generation" or not is_encoder(config)):
        if not tokenizer.chat_template:
            # A model that was trained on texts with a beginning token is at a loss without it.
            begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
            tokenizer.chat_template = ("{{ bos_token }}" if begins else "") + PLAIN_TEMPLATE
        if task == "ranking":
            _tell_pad_from_end(tokenizer)
    return tokenizer


def _tell_pad_from_end(tokenizer: PreTrainedTokenizerBase) -> None:
    """Plain transformers reads a reward at the last token that is no pad. An answer ends with its stop token, so where
    that is the pad too it would look one token too early, and never at the end of the answer."""
    stops = stop_token_ids(tokenizer)
    if tokenizer.pad_token_id in stops:
        others = (token for token in [*tokenizer.all_special_ids, *range(len(tokenizer))] if token not in stops)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(next(others))


def _check_loaded(network: Network, info: dict[str, Any]) -> None:
    """Only a head may be missing from the weights; a body drawn at random would train to nonsense."""
    allowed = network.head_modules
    sizes = {name: (tuple(found), tuple(wanted)) for name, found, wanted in info["mismatched_keys"]}
    drawn = sorted({*info["missing_keys"], *sizes})
    foreign = [key for key in drawn if not set(key.split(".")) & set(allowed)]
    if foreign:
        first = foreign[0]
        found = f", there {sizes[first][0]}, here {sizes[first][1]}" if first in sizes else ""
        raise InputError(
            f"'{network.source}': the weights lack {len(foreign)} tensors of "
            f"{type(network.model).__name__}, for example {first}{found}. They belong to another architecture"
        )
    network.new_modules = tuple(sorted({key.rpartition(".")[0] for key in drawn}))


def _agree_on_pad(network: Network) -> None:
    """Plain transformers finds the last real token of a padded row by the pad id."""
    if network.tokenizer.pad_token_id is None:
        raise InputError(f"'{network.source}': its tokenizer has neither a pad nor an end-of-text token")
    if len(network.tokenizer) > network.model.get_input_embeddings().num_embeddings:
        raise InputError(
            f"'{network.source}': the tokenizer has {len(network.tokenizer)} tokens, the model's embedding "
            f"{network.model.get_input_embeddings().num_embeddings}. Resize and save the model first"
        )
    network.model.config.pad_token_id = network.tokenizer.pad_token_id


def move(network: Network, device: torch.device) -> None:
    network.model.to(device)
    if network.wrapper is not None:
        network.wrapper.to(device)


def settle_precision(network: Network, dtype: torch.dtype, trained: torch.dtype = torch.float32) -> None:
    """Frozen weights in `dtype`, trained ones in `trained`; matrix products then run under autocast."""
    for module in network.model.modules():  # norms want all their own parameters in one type
        own = list(module.parameters(recurse=False))
        kind = trained if any(parameter.requires_grad for parameter in own) else dtype
        for parameter in own:
            parameter.data = parameter.data.to(kind)


def rest(network: Network, dtype: torch.dtype, device: torch.device) -> None:
    """For answers alone: nothing trains, nothing drops out."""
    network.model.requires_grad_(False)
    settle_precision(network, dtype)
    network.model.to(device).eval()


def count_parameters(network: Network, beside: Sequence[nn.Module] = ()) -> tuple[int, int]:
    """(trainable, all) parameters, shared ones counted once, packed ones (`quantized.py`) as what they stand for; with
    those of modules that are trained `beside` it."""
    whole = nn.ModuleList([network.root, *beside])
    parameters = list(whole.parameters())
    num_packed = sum(getattr(module, "num_weights", 0) for module in whole.modules())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters) + num_packed
