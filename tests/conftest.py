"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from data_helpers import save_images

# Inductor's pool of compiling processes costs more than it saves for graphs as small as the tests'.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
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


@pytest.fixture
def pictures(tmp_path):
    """A folder of 30 grey images of one grey value each: 0, 8, 16, ..."""
    folder = tmp_path / "pictures"
    save_images(folder, {f"{i:02}.png": np.full((3, 5), 8 * i, np.uint8) for i in range(30)})
    return folder


def pytest_collection_modifyitems(items):
    """Skip CUDA tests where there is no CUDA."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
