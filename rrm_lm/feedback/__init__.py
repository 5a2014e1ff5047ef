"""Feedback in: records of what people say they want, the readers that make them, splits, and overseers.

| module | what it holds |
|---|---|
| `records` | Comparison, Critique, Rating, Demonstration, Correction, GoalExample; the direction of a preference |
| `files`, `limits` | local files to rows, and how much a file may hold |
| `formats` | rows to records: one small function for each shape, recognised by its columns |
| `datasets` | `load_feedback` for a file, a folder or a Hub set |
| `counts` | what became of every row |
| `splits` | split by prompt, leakage check |
| `prompts` | prompts to answer, from any of these files |
| `overseers` | whoever gives feedback, and people simulated |
| `plain_user`, `plain_words` | the simulated person behind the assistant set, and how it writes |
| `judge_questions` | what language models are asked about responses, and how their answers are read |
| `llm_judge` | a language model behind an OpenAI-compatible server as an overseer |
| `collection` | new feedback on a policy's own samples: which pairs are asked about, and the file that comes of it |
| `asking`, `journal` | several questions at once, and answers kept as they come |
"""
