"""What holds for every test: no hub, the same random numbers, one thread to each of two workers, no deadlines.

TUNESMITH_CACHE is left as it is: what the catalogue has fetched serves tests and demo alike.
"""

from __future__ import annotations

import os
import random

# Read when transformers and datasets are imported, and by the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"
# Threads that wait asleep: where something else needs a core, spinning ones make tiny models ten times slower.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
# How long an example takes says what else the machine does.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
