"""PPO with TRL's settings, arguments, logs and losses; the loop is this package's.

How a batch is laid, from the smallest part up:

- a *line* is one token sequence: a prompt and one response to it (`text/chat.py`);
- a *row* is what goes through the model: lines that begin alike share the tokens that they share (`text/batching.py`);
- a *family* is a prompt with all of its responses;
- a *bundle* is as many families as fit into `micro_batch_tokens`; it is one forward pass;
- a *group* is the responses of a prompt that are compared with each other (RLOO);
- a *step* is one optimizer step: one mini-batch of episodes, in as many bundles as it takes.

One update rolls out responses, scores them, estimates advantages, and takes its steps. May import models and below.
"""
