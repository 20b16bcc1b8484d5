"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pyro
import pytest
import torch

SHARED = Path(os.environ.get("PPL_DATA_ROOT") or Path(__file__).parents[2] / "shared" / "data")


@pytest.fixture(autouse=True)
def _quiet_and_seeded():
    """Every test starts from the same draws, an empty parameter store, and one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pyro.clear_param_store()


@pytest.fixture
def shared_data() -> Path:
    """Folder of real data files, or a skip that says what is missing."""
    if not SHARED.is_dir():
        pytest.skip(f"no data files in {SHARED}; name their folder by PPL_DATA_ROOT")
    return SHARED


def pytest_collection_modifyitems(items):
    """Skip CUDA tests where there is no CUDA."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
