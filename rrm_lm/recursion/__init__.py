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

**Your own domain** is one class in one file: it defines the prompts and responses, what the overseer sees, and what
helpers can judge. `scripts/examples/recursion/my_domain.py` is a complete one that asks for sums, `my_tree.yaml` its
tree: ``rrm-lm recurse --config scripts/examples/recursion/my_tree.yaml --allow_code``.

An aspect that follows from simpler aspects can list them as its `parts` and `conclude` from their verdicts. Its helper
can then have helpers. `measure`, the check, may also ask a person or call a program.
"""
