"""The evaluation under its short name, in a checkout: `python -m eval.run` runs `llava_prumerge/evaluation/run.py`.

Every module of `llava_prumerge.evaluation` is found here too. An installed package has the long name alone, and
`llava-prumerge evaluate`, so that it never hides another package called `eval`.
"""

from llava_prumerge import evaluation

__path__ = list(evaluation.__path__)
