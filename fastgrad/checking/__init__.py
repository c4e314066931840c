"""Checking a gradient: evidence about each entry, one table of rules, and how it is told.

Begin with `check`, the two public functions. `evidence` looks, `verdicts` judges, `suspects`
guesses what is wrong, and `result` is what the user gets. It imports `fastgrad.numdiff` and what is
below that.
"""
