"""Language models: the frozen backbone, one adapter per role, and reward heads.

`decoding/` samples responses; `saving/` reads and writes model folders. May import text, feedback and below.

Precision: the backbone is in the dtype that it is loaded in (bfloat16 on GPUs), and layers compute in it. Adapters,
heads and the optimizer's state are in float32. Log-probabilities, rewards, values, losses and their sums are computed
in float32 (tests/unit/training/test_precision.py, tests/unit/models/test_bf16.py).
"""
