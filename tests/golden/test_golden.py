"""The numbers of a reference run stay what they were; ``regenerate.py`` makes them anew."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from regenerate import FILE, reference_run


def test_the_reference_run_is_as_recorded():
    recorded = json.loads(FILE.read_text())
    rows = reference_run()
    assert len(rows) == len(recorded)
    for row, expected in zip(rows, recorded, strict=True):
        assert row == pytest.approx(expected, rel=1e-5)
