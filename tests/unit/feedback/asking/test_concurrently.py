"""Many questions at once: the answers in order, and none lost."""

from __future__ import annotations

import threading

import pytest

from rrm_lm.feedback.asking.concurrently import ask_all


@pytest.mark.parametrize("at_once", [1, 3, 50])
def test_answers_come_in_the_order_of_the_questions(at_once: int) -> None:
    kept: list[tuple[int, int]] = []
    answers = ask_all(lambda n: n * n, range(20), at_once=at_once, keep=lambda n, answer: kept.append((n, answer)))
    assert answers == [n * n for n in range(20)]
    assert sorted(kept) == [(n, n * n) for n in range(20)]
    assert ask_all(lambda n: n, [], at_once=at_once) == []


def test_questions_are_really_asked_together_and_later_ones_may_be_answered_first() -> None:
    together = threading.Barrier(4, timeout=20)
    later = threading.Event()
    kept: list[int] = []

    def ask(number: int) -> int:
        if number < 4:
            together.wait()
        if number == 0:
            assert later.wait(20)
        return number

    def keep(number: int, _answer: int) -> None:
        kept.append(number)
        if number == 4:
            later.set()

    assert ask_all(ask, range(6), at_once=4, keep=keep) == list(range(6))
    assert kept.index(4) < kept.index(0)


def test_no_more_are_under_way_than_allowed() -> None:
    lock, now, most = threading.Lock(), 0, 0
    second = threading.Event()

    def ask(number: int) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
            if now == 2:
                second.set()
        second.wait(20)
        with lock:
            now -= 1

    ask_all(ask, range(10), at_once=2)
    assert most == 2


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_stops_the_asking_but_loses_no_answer(error: type[BaseException]) -> None:
    both, failed = threading.Barrier(2, timeout=20), threading.Event()
    asked: list[int] = []

    def ask(number: int) -> str:
        asked.append(number)
        if number < 2:
            both.wait()
        if number == 0:
            failed.set()
            raise error("no")
        assert failed.wait(20)
        return "an answer"

    kept: list[int] = []
    with pytest.raises(error, match="no"):
        ask_all(ask, range(1000), at_once=2, keep=lambda n, _: kept.append(n))
    assert 1 in kept and sorted([0, *kept]) == sorted(asked) and len(asked) < 1000


def test_one_at_a_time_is_asked_in_this_thread() -> None:
    threads = ask_all(lambda _: threading.get_ident(), range(3))
    assert set(threads) == {threading.get_ident()}
