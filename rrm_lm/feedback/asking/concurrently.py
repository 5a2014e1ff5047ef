"""Ask several questions at the same time, and keep every answer even when one of them fails."""

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
    """Return the answers in the order of the questions.

    `ask` is called in up to `at_once` threads, or in this thread if that is 1. `keep` is called in this thread with
    each question and its answer as it arrives, in no fixed order. At the first error of `ask`, or an interruption
    (Ctrl-C), no further question is asked; `keep` still gets the answers to the questions in flight, and the error is
    raised.
    """
    answers: dict[int, Answer] = {}

    def take(number: int, answer: Answer) -> None:
        answers[number] = answer
        if keep is not None:
            keep(questions[number], answer)

    if at_once <= 1 or not questions:
        for number, question in enumerate(questions):
            take(number, ask(question))
        return list(answers.values())
    in_flight: dict[Future[Answer], int] = {}
    waiting = iter(range(len(questions)))
    with ThreadPoolExecutor(at_once, thread_name_prefix="asking") as threads:
        try:
            while True:
                # Submit only as many questions as there are threads, so that a failure leaves none queued.
                while len(in_flight) < at_once and (number := next(waiting, None)) is not None:
                    in_flight[threads.submit(ask, questions[number])] = number
                if not in_flight:
                    break
                for future in wait(in_flight, return_when=FIRST_COMPLETED).done:
                    take(in_flight.pop(future), future.result())
        except BaseException:
            for future in wait(in_flight).done:
                if future.exception() is None:
                    take(in_flight[future], future.result())
            raise
    return [answers[number] for number in range(len(questions))]
