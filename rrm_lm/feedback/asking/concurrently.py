"""Many questions to somebody who can take several at once, with no answer lost when one of them fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")


def ask_all(
    ask: Callable[[Question], Answer],
    questions: Sequence[Question],
    *,
    at_once: int = 1,
    keep: Callable[[Question, Answer], None] | None = None,
) -> list[Answer]:
    """The answers to all questions, in the questions' order, however they come in.

    Args:
        ask: Answers one question; called in up to `at_once` threads, or in this one where that is 1.
        questions: What to ask.
        at_once: Most questions under way at a time.
        keep: Called in this thread with each question and its answer as soon as it is there, in no fixed order.

    Raises:
        Exception: What `ask` raised first. Nothing more is asked then; the questions under way are waited for, and
            `keep` gets their answers. An interruption (Ctrl-C) does the same.
    """
    answers: dict[int, Answer] = {}

    def take(number: int, answer: Answer) -> None:
        answers[number] = answer
        if keep is not None:
            keep(questions[number], answer)

    if at_once <= 1:
        for number, question in enumerate(questions):
            take(number, ask(question))
    else:
        _in_threads(ask, questions, min(at_once, len(questions)), take)
    return [answers[number] for number in range(len(questions))]


def _in_threads(
    ask: Callable[[Question], Answer], questions: Sequence[Question], at_once: int, take: Callable[[int, Answer], None]
) -> None:
    under_way: dict[Future[Answer], int] = {}
    waiting = iter(range(len(questions)))
    if not questions:
        return
    with ThreadPoolExecutor(at_once, thread_name_prefix="asking") as threads:
        try:
            while True:
                # Only as many as there are threads are handed over, so that a failure leaves nothing queued behind it.
                for number in waiting:
                    under_way[threads.submit(ask, questions[number])] = number
                    if len(under_way) == at_once:
                        break
                if not under_way:
                    return
                done, _ = wait(under_way, return_when=FIRST_COMPLETED)
                for future in done:
                    take(under_way.pop(future), future.result())
        except BaseException:
            for future in wait(under_way).done:
                if future.exception() is None:
                    take(under_way[future], future.result())
            raise
