"""PPO with TRL's settings, arguments, logs and losses; the loop is this package's.

How a batch is laid, from the smallest part up:

- a *line* is one token sequence: a prompt and one response to it (`text/chat.py`);
- a *family* is a prompt's lines, the samples drawn for it;
- a *bundle* is the families laid into one *row*: tokens that they share are computed once (`text/batching.py`);
- a *group* is the rows of one forward pass, as many as fit into `micro_batch_tokens` (`rollouts.Grouping`);
- a *step* is one optimizer step: the gradients of all groups of a mini-batch.

One update rolls out responses, scores them, estimates advantages, and takes its steps. May import models and below.
"""
