"""Feedback: records, the readers that make them, splits, and the collection of new feedback.

| module | contents |
|---|---|
| `records` | Comparison, Critique, Rating, Demonstration, Correction, GoalExample; the direction of a preference |
| `reading` | files, folders and Hub sets to rows (`files`, `tables`), rows to records (`formats`, `datasets`) |
| `counts` | counts of used and dropped rows |
| `splits` | splits by prompt, stratified sampling, the leakage check |
| `asking` | overseers, LLM judges, and collections of their answers |
"""
