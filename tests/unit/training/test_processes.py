"""Every example once a pass, whatever the number of processes."""

from __future__ import annotations

import pytest

from rrm_lm.training.processes import GlobalBatches


@pytest.mark.parametrize(("count", "processes"), [(21, 2), (21, 4), (16, 2), (1, 4), (17, 3)])
def test_processes_take_together_what_one_takes(count: int, processes: int) -> None:
    one = list(GlobalBatches(count, 2 * processes, 7))
    parts = [list(GlobalBatches(count, 2, 7, process, processes)) for process in range(processes)]
    assert {len(part) for part in parts} == {len(one)} == {len(GlobalBatches(count, 2, 7, 0, processes))}
    for number, batch in enumerate(one):
        shares = [part[number] for part in parts]
        assert sorted(batch) == sorted(index for share in shares for index in share)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert sorted(index for batch in one for index in batch) == list(range(count))


def test_each_epoch_has_an_order_of_its_own() -> None:
    batches = GlobalBatches(20, 4, 7)
    first = list(batches)
    assert list(batches) == first
    batches.batch_sampler.set_epoch(1)  # as Trainer tells of it
    assert list(batches) != first and list(batches) == list(GlobalBatches(20, 4, 8))


def test_as_they_are_and_without_a_rest() -> None:
    assert list(GlobalBatches(5, 2, None)) == [[0, 1], [2, 3], [4]]
    assert list(GlobalBatches(5, 2, None, drop_last=True)) == [[0, 1], [2, 3]]
    assert list(GlobalBatches(5, 1, None, 1, 2, drop_last=True)) == [[1], [3]]
