"""The precisions that tests of numbers run in."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests import tiny
from tests.precision import Precision


@pytest.fixture(params=["float32", "bfloat16"])
def precision(request: Any, monkeypatch: pytest.MonkeyPatch) -> Precision:
    """Sets the dtype of tiny models that a test makes."""
    dtype = getattr(torch, request.param)
    monkeypatch.setattr(tiny, "BACKBONE_DTYPE", dtype)
    return Precision(dtype)
