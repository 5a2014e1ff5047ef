"""`import rrm_lm`: quick, without torch, and with everything that it lists."""

from __future__ import annotations

import subprocess
import sys

import pytest

import rrm_lm


def test_the_import_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import rrm_lm; seconds = time.perf_counter() - start\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), 'heavy'\n"
        "assert set(rrm_lm.__all__) <= set(dir(rrm_lm))\n"
        "print(seconds)"
    )
    # The best of three: a busy machine may make any one of them slow.
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(times) <= 0.2


@pytest.mark.parametrize("name", sorted(set(rrm_lm.__all__) - {"__version__"}))
def test_every_export_is_there_with_a_docstring(name: str) -> None:
    exported = getattr(rrm_lm, name)
    assert exported.__name__ == name and exported.__doc__
    assert exported.__doc__.count("Example:") == 1 or name.endswith("Config"), name


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'RewardModels'"):
        _ = rrm_lm.RewardModels
