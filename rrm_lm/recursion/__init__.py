"""Recursive reward modeling: helpers, also trained by reward modeling, assist the overseer of a harder task.

- `solve.py`: the recursion in one short function. Start here.
- `tasks.py`: domains and their tasks: the main task, one helper task per aspect, and pointing.
- `tree.py`: the tree of nodes and their settings, read from YAML and validated.
- `notes.py`: notes that helpers write on a response, and their format as data.
- `oversight.py`: the simulated overseers, one per kind of task.
- `assistance.py`: passes helpers' notes to an overseer and drops bad ones.
- `agents.py`: a solved task as adapters on the shared backbone: a policy and its reward model.
- `training.py`: trains one node's adapters: the start policy, the reward model and the PPO policy.
- `steps.py`: the steps of one node, each saved when done.
- `workspace.py`: the folder of each node, whether it is up to date, and loading its agent.
- `quality.py`: measures a solved node by the gold reward.
- `report.py`: results.json and report.html of a solved tree.
- `critics.py`: lets any trained helper assist any judge, without a tree: `--critic` in `rrm-lm evaluate`, `compare` and
  `collect`.

**Your own domain** is one class in one file. Run it with ``rrm-lm recurse --config my_tree.yaml --domain
my_domain.py:MyDomain`` (or put ``domain:`` into the YAML file). It defines the prompts and responses, what the overseer
sees, and what helpers can judge. A complete domain that asks for sums:

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
                question="Is the result even?", verdicts=("even", "odd"),       # the first: no problem
                measure=is_even,                                                # one check
                evidence=lambda prompt, response: [response],                   # what a note may quote
                plant=lambda prompt, rng: "sum=%d" % rng.randrange(11, 99, 2),  # likely to be wrong
            )
        }
        def draft(self, prompt, rng): return f"sum={rng.randrange(10, 100)}"
        def vary(self, prompt, response, rng): return self.draft(prompt, rng)
        def parse(self, response): return re.fullmatch("sum=[0-9]+", response)     # None: unreadable
        def gold(self, prompt, response):                                       # hidden from all
            return int(response[4:]) / 100 - (is_even(prompt, response) == "odd") if self.parse(response) else -1.0
        def impression(self, prompt, response): return int(response[4:]) / 100  # what the overseer sees
        def weight(self, prompt, aspect, verdict): return float(verdict == "odd")

and its tree:

.. code-block:: yaml

    domain: my_domain.py:Sums
    tree:
      sum: {task: main, helpers: [parity], questions: 100}
      parity: {questions: 60}

An aspect that follows from simpler aspects can list them as its `parts` and `conclude` from their verdicts. Its helper
can then have helpers. `measure`, the check, may also ask a person or call a program.
"""
