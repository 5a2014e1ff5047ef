"""Criteria: what people say they want, as records that are measured. `rrm-lm criteria` finds them in critiques.

`records.py` holds a criterion and its file, `detectors.py` the measures of texts, `lexicon.yaml` the words for them,
`reader.py` reads critiques clause by clause, and `finding.py` collects what was said about a set of feedback.
"""
