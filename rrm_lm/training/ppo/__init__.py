"""PPO with TRL's settings, arguments, logs and losses, and with this package's training loop.

How the episodes of one update pass through the model, with two prompts and two samples of each::

    line     [system | prompt A | response 1]        line     [system | prompt B | response 3]
    line     [system | prompt A | response 2]        line     [system | prompt B | response 4]
             `------------- family ---------'                 `------------- family ---------'

    row      [system | prompt A | response 1 | response 2 | prompt B | response 3 | response 4]

    group    rows of similar length, padded to a rectangle of at most micro_batch_tokens tokens
    step     group, group, group ... -> one optimizer step

- A **line** is one token sequence: a prompt and one response, i.e. one episode (`text/chat.py`).
- A **family** is the lines of one prompt, i.e. all of its samples.
- A **row** is one or more families in one token sequence, in which every shared prefix appears once and no line attends
  to another line's tokens (`text/batching.py`). If sharing is not exact, each line has its own row.
- A **group** is the rows of one forward pass (`rollouts.Grouping`).
- A **step** is one optimizer step: the accumulated gradients of all groups of a mini-batch (`update.py`).

`trainer.py`, `PPOTrainer.train`: one update samples responses, scores them, estimates advantages (`estimates.py`), and
takes the optimizer steps (`update.py`, `PolicyUpdate.run`).

May import training's own modules, models and below.
"""
