"""Stage: runs -> a model that others load.

A merged model is a plain transformers model: the base with a run's change in its own weights, all of it or a part, or
the changes of several runs put together. That the merged model says what the run said is measured, not assumed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from tunesmith.config_export import ExportConfig
from tunesmith.data.pack import pack
from tunesmith.data.sides import find_sides
from tunesmith.errors import InputError
from tunesmith.methods.method import Method, save_pretrained
from tunesmith.methods.table import METHODS
from tunesmith.models.blend import COMBINATIONS
from tunesmith.models.load import Network, load_network
from tunesmith.models.packed import packed_logits
from tunesmith.models.quantized import unpack_base
from tunesmith.models.wrap import unwrap_merged
from tunesmith.records import TokenizedExample
from tunesmith.runs.run import Run, refuse_damaged, refuse_strangers
from tunesmith.storage import appearing, check_space, explained

# Rows of drawn tokens on which a merged model is compared with the run, and how far apart their logits may be.
PROBES = (3, 8, 21, 34)
LARGEST_GAP = 1e-3


@dataclass(frozen=True, slots=True)
class Exported:
    """Where a model went, and how far its logits are from the run's: the largest gap, in shares of the largest logit.

    `gap` is None where there is nothing to compare with: a part of a change, or several put together.
    """

    folder: Path
    form: str
    gap: float | None
    num_parameters: int


def export(config: ExportConfig) -> Exported:
    """Writes the model to `config.output`, which must not exist.

    Raises:
        InputError: a run that cannot be merged, runs of different base models, or a folder that exists.
    """
    if config.output.exists():
        raise InputError(f"output '{config.output}' exists already. Give another --output")
    runs = [Run.open(folder) for folder in config.runs]
    if config.to == "adapter":
        return _export_adapter(runs, config.output)
    for run in runs:
        _refuse_unmergeable(run)
    dtype = runs[0].network.model.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
    if len(runs) == 1 and config.keep == 1:
        network, logits = _merge(runs[0])
        network.model.to(dtype)
        gap: float | None = find_gap(_logits(network), logits)
    else:
        network, gap = _blend(runs, config), None
        network.model.to(dtype)
    _write(network, config.output)
    return Exported(config.output, "merged", gap, sum(p.numel() for p in network.model.parameters()))


def _method(run: Run) -> Method:
    return METHODS[run.manifest["method"]]


def _export_adapter(runs: Sequence[Run], output: Path) -> Exported:
    """The run's own files, without its records: they are the adapter as it was saved."""
    if len(runs) > 1 or _method(runs[0]).saving.whole:
        raise InputError("--to adapter takes one run whose files are an adapter; this is --to merged")
    run = runs[0]
    refuse_damaged(run)
    with _filling(output, sum((run.folder / name).stat().st_size for name in run.model_files)) as partial:
        for name in run.model_files:
            shutil.copyfile(run.folder / name, partial / name)
    return Exported(output, "adapter", None, run.manifest["total_parameters"])


def _refuse_unmergeable(run: Run) -> None:
    method = _method(run)
    if not (method.merges or method.saving.whole):
        raise InputError(
            f"{run.folder}: {method.name} adds parts that are no change of the base model's own weights, so it cannot "
            "be merged. Export it with --to adapter"
        )


def _merge(run: Run) -> tuple[Network, torch.Tensor]:
    """The run's network with its adapter in the base's weights, in float32, and what the run said before."""
    network = run.network
    unpack_base(network)
    network.root.float()
    before = _logits(network)
    if _method(run).merges:
        network.model = network.wrapper = unwrap_merged(network.wrapper)  # type: ignore[arg-type]
        gap = find_gap(_logits(network), before)
        if not gap <= LARGEST_GAP:
            raise InputError(
                f"{run.folder}: its adapter cannot be merged: the logits would be {gap:.1e} of the largest away. "
                "Export it with --to adapter"
            )
    return network, before


def find_gap(logits: torch.Tensor, before: torch.Tensor) -> float:
    """The largest difference, as a share of the largest logit."""
    return float((logits - before).abs().max() / before.abs().max())


def _probes(network: Network) -> list[TokenizedExample]:
    """Of an encoder-decoder the second half of each row is its target."""
    sides = find_sides(network.tokenizer)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index, length in enumerate(PROBES):
        ids = torch.randint(len(network.tokenizer), (length,), generator=generator).tolist()
        tags = (0,) * length if network.task == "token-classification" else None
        is_window = network.task == "extractive-qa"
        first = length // 2 if sides is not None else 0
        trained = tuple((tags is not None or network.task == "generation") and at >= first for at in range(length))
        start = None if sides is None else sides.start
        target = (0, 0) if is_window else tags
        offsets = (0, 1) * length if is_window else ()
        rows.append(TokenizedExample(tuple(ids), trained, target, 0, index, start=start, offsets=offsets))
    return rows


def _logits(network: Network) -> torch.Tensor:
    network.model.eval()
    batch = pack(_probes(network), network.num_virtual, network.is_decoder).to(next(network.model.parameters()).device)
    with torch.no_grad():
        return packed_logits(network, batch).float().cpu()


def _blend(runs: Sequence[Run], config: ExportConfig) -> Network:
    """The base plus `keep` times the runs' changes, put together.

    With one run and `keep` below 1 these are the weights between base and tuned of WiSE-FT (Wortsman et al. 2022,
    arXiv 2109.01903), which forget less. Heads that the base did not have are the run's.
    """
    base = _load_base(runs)
    merged = [dict(_merge(run)[0].model.cpu().named_parameters()) for run in runs]
    shares = config.shares or [1 / len(runs)] * len(runs)
    torch.manual_seed(config.seed)
    combine = COMBINATIONS[config.combine]
    with torch.no_grad():
        for name, weight in base.model.named_parameters():
            if base.is_new(name):
                weight.copy_(merged[0][name])
                continue
            changes = [tuned[name] - weight for tuned in merged]
            change = changes[0] if len(runs) == 1 else combine(changes, shares, config.density)
            weight.add_(change, alpha=config.keep)
    base.tokenizer = runs[0].network.tokenizer
    return base


def _load_base(runs: Sequence[Run]) -> Network:
    refuse_strangers(runs)
    first = runs[0].manifest
    parent = first["parent"]
    if len(runs) > 1 and first["task"] != "generation":
        raise InputError(f"each run has a head of its own for {first['task']}, and heads cannot be combined")
    base = load_network(parent["name"], first["task"], first["class_names"], torch.float32)
    if base.fingerprint != parent["fingerprint"]:
        raise InputError(f"'{parent['name']}' is no longer the model from which {runs[0].folder} was made")
    return base


def _write(network: Network, output: Path) -> None:
    with _filling(output, sum(p.numel() * p.element_size() for p in network.model.parameters())) as partial:
        save_pretrained(network, partial)
        network.tokenizer.save_pretrained(partial)


@contextmanager
def _filling(output: Path, size: int) -> Iterator[Path]:
    """A folder that becomes `output` when it holds `size` bytes and more, or an InputError that says why not."""
    output.parent.mkdir(parents=True, exist_ok=True)
    check_space(output.parent, size, "the exported model")
    with explained("The exported model", output), appearing(output) as partial:
        yield partial
