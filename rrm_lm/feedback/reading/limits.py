"""Size limits of data files: a small download can decompress to more than the memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rrm_lm.errors import DataError
from rrm_lm.options import check, check_minimum, option

_MOST_GB = 20
_SHARE = 4  # a file may take 1/4 of the free memory, because its rows and records take several times its size


@dataclass
class ReadLimits:
    """Size limits of a data file."""

    max_file_gb: float | None = option(
        None,
        f"Most gigabytes of a data file when decompressed; unset: a quarter of the free memory, at most {_MOST_GB}.",
    )
    max_cell_chars: int = option(10_000_000, "Most characters of a cell of a data file.")

    def __post_init__(self) -> None:
        check(self, ("max_file_gb", self.max_file_gb is None or self.max_file_gb > 0, "above 0"))
        check_minimum(self, max_cell_chars=1)

    def file_bytes(self) -> int:
        """Maximum bytes of a file, given the free memory."""
        if self.max_file_gb is not None:
            return int(self.max_file_gb * 1e9)
        import psutil

        return min(psutil.virtual_memory().available // _SHARE, _MOST_GB * 10**9)

    def check_row(self, row: Mapping[str, Any], where: str) -> None:
        """Check the length of each cell. All texts in a list or mapping count. Raises DataError if one is too long."""
        for name, value in row.items():
            if (length := _characters(value)) > self.max_cell_chars:
                raise self.too_long(f"the cell {name!r} has {length:,} characters", where)

    def too_long(self, what: str, where: str) -> DataError:
        """The error for a cell or row that is too long."""
        return DataError(
            what,
            where=where,
            expected=f"at most {self.max_cell_chars:,} characters in a cell (max_cell_chars)",
            remedy="shorten or remove it; or, if it is what it should be, pass a larger --max_cell_chars",
        )


def too_large(limit: int, where: str) -> DataError:
    """The error for a file or set of more than `limit` bytes."""
    return DataError(
        f"there are more than {limit / 1e9:.3g} GB in it when decompressed",
        where=where,
        expected=f"at most {limit / 1e9:.3g} GB (max_file_gb)",
        remedy="take a part of it; or, if it is what it should be and fits into memory, pass a larger --max_file_gb",
    )


def _characters(value: Any) -> int:
    """The length of all texts in a value. Not recursive, because a value may be nested deeper than the call stack."""
    total, left = 0, [value]
    while left:
        one = left.pop()
        if isinstance(one, str | bytes):
            total += len(one)
        elif isinstance(one, dict):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            left += one
    return total
