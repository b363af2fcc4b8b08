"""Models of the hub, fetched into its usual cache: a local folder that is checked like any other."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from huggingface_hub import snapshot_download

from tunesmith.errors import InputError

# Everything that is read of a model, and nothing that could run: no *.bin, no *.py.
WANTED = ["*config*.json", "tokenizer*.json", "vocab*.json", "special_tokens_map.json", "added_tokens.json"]
WANTED += ["*.safetensors", "*.safetensors.index.json", "*.model", "*.txt", "*.jinja"]
# Folders hold the same weights for other programs, and so do these files.
UNWANTED = ["*/*", "consolidated*.safetensors"]


@cache
def fetch_model(name: str) -> Path:
    """The folder of a hub model in the hub's cache; without a network what is there is taken.

    One command asks for its model several times; the hub is asked once.

    Raises:
        InputError: the hub has no such model, does not let you have it, or cannot be reached.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=WANTED, ignore_patterns=UNWANTED))
    except Exception as error:  # beside its own errors the hub's client lets those of its HTTP library through
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(
            f"cannot load model '{name}' from the hub: {first_line}. Check the name and the connection (HF_HUB_OFFLINE "
            "forbids one); a model behind a licence needs `hf auth login`; or give a catalogue name or a folder"
        ) from error
