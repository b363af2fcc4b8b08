"""tunesmith: specialise a pretrained language model, and see, measured, whether it was worth it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith.errors import InputError

if TYPE_CHECKING:
    from tunesmith.api import (
        align,
        compare,
        evaluate,
        forgetting,
        load,
        load_adapters,
        plan,
        predict,
        pretrain,
        reward,
        tokenizer,
        tune,
    )
    from tunesmith.evaluation.compare import Comparison
    from tunesmith.inspection.look import Inspection, inspect
    from tunesmith.runs.run import Run
    from tunesmith.train.plan import Forecast

__all__ = [
    "Comparison",
    "Forecast",
    "InputError",
    "Inspection",
    "Run",
    "align",
    "compare",
    "evaluate",
    "forgetting",
    "inspect",
    "load",
    "load_adapters",
    "plan",
    "predict",
    "pretrain",
    "reward",
    "tokenizer",
    "tune",
]
__version__ = "0.1.0"

_HOMES = dict.fromkeys(__all__, "tunesmith.api") | {
    "Comparison": "tunesmith.evaluation.compare",
    "Forecast": "tunesmith.train.plan",
    "Inspection": "tunesmith.inspection.look",
    "Run": "tunesmith.tuning",
    "inspect": "tunesmith.inspection.look",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: `import tunesmith` alone does not load torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tunesmith' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
