"""A domain of your own for `rrm-lm recurse`: asks for sums, with a helper that says whether a sum is even.

rrm-lm recurse --config scripts/examples/recursion/my_tree.yaml --allow_code
"""

import re

from rrm_lm.feedback.records import Message
from rrm_lm.recursion.tasks import Aspect


def is_even(prompt, response):
    return "odd" if response[-1:] in ("1", "3", "5", "7", "9") else "even"


class Sums:
    name, kind, noise = "sums", "sum", 0.1
    limit = "likes large numbers, and does not see whether they are odd"
    prompts = tuple((Message("user", f"Add something to {n}."),) for n in (10, 20))
    aspects = {  # noqa: RUF012
        "parity": Aspect(
            question="Is the result even?",
            verdicts=("even", "odd"),  # the first: no problem
            measure=is_even,  # one check
            evidence=lambda prompt, response: [response],  # what a note may quote
            plant=lambda prompt, rng: f"sum={rng.randrange(11, 99, 2)}",  # likely to be wrong
        )
    }

    def draft(self, prompt, rng):
        return f"sum={rng.randrange(10, 100)}"

    def vary(self, prompt, response, rng):
        return self.draft(prompt, rng)

    def parse(self, response):  # None: unreadable
        return re.fullmatch("sum=[0-9]+", response)

    def gold(self, prompt, response):  # hidden from all
        return int(response[4:]) / 100 - (is_even(prompt, response) == "odd") if self.parse(response) else -1.0

    def impression(self, prompt, response):  # what the overseer sees
        return int(response[4:]) / 100

    def weight(self, prompt, aspect, verdict):
        return float(verdict == "odd")
