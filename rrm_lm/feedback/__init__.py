"""Feedback: records of what people say they want, the readers that make them, splits, and new feedback.

| module | what it holds |
|---|---|
| `records` | Comparison, Critique, Rating, Demonstration, Correction, GoalExample; the direction of a preference |
| `reading` | files, folders and Hub sets to rows (`files`, `tables`), rows to records (`formats`, `datasets`) |
| `counts` | what became of every row and column |
| `splits` | splits by prompt, samples in proportion, the leakage check |
| `asking` | overseers, LLM judges, and collections of their answers |
"""
