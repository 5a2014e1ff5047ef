"""Recursive reward modeling: agents, trained by reward modeling on easier tasks, help to judge a harder one.

Where to read: `recursion.py` is the idea, one short function. `tasks.py` says what a domain and its tasks are,
`notes.py` and `assistance.py` how helpers help, `oversight.py` who judges, `work.py` what each step does and keeps.
`critics.py` lets any trained helper assist any judgement: `--critic` in `rrm-lm evaluate`, `compare` and `collect`.

**A domain of one's own** is one class in one file, run with ``rrm-lm recurse --config my_tree.yaml --domain
my_domain.py:MyDomain`` (or ``domain:`` in the file). It says what is asked and answered, what the overseer sees, and
what helpers can judge. A whole one, which asks for sums:

.. code-block:: python

    import re

    from rrm_lm.feedback.records import Message
    from rrm_lm.recursion.tasks import Aspect

    def is_even(prompt, response):
        return "odd" if response[-1:] in ("1", "3", "5", "7", "9") else "even"

    class Sums:
        name, kind, noise = "sums", "sum", 0.1
        limit = "likes large numbers, and does not see whether they are odd"
        prompts = tuple((Message("user", f"Add something to {n}."),) for n in (10, 20))
        aspects = {
            "parity": Aspect(
                question="Is the result even?", verdicts=("even", "odd"),       # the first: nothing is wrong
                measure=is_even,                                                # one check
                evidence=lambda prompt, response: [response],                   # what can be quoted
                plant=lambda prompt, rng: "sum=%d" % rng.randrange(11, 99, 2),  # likely to be wrong
            )
        }
        def draft(self, prompt, rng): return f"sum={rng.randrange(10, 100)}"
        def vary(self, prompt, response, rng): return self.draft(prompt, rng)
        def parse(self, response): return re.fullmatch("sum=[0-9]+", response)     # None: it cannot be read
        def gold(self, prompt, response):                                       # hidden from everybody
            return int(response[4:]) / 100 - (is_even(prompt, response) == "odd") if self.parse(response) else -1.0
        def impression(self, prompt, response): return int(response[4:]) / 100  # what the overseer sees
        def weight(self, prompt, aspect, verdict): return float(verdict == "odd")

and its tree:

.. code-block:: yaml

    domain: my_domain.py:Sums
    tree:
      sum: {task: main, helpers: [parity], questions: 100}
      parity: {questions: 60}

An aspect whose truth follows from simpler ones can name these as its `parts` (and `conclude` from their verdicts):
then its helper can have helpers. What the bench checks, `measure`, may also be asked of a person or a program.
"""
