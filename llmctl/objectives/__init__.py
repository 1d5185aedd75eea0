"""What a model is trained to do: one file for each objective.

An objective is a module that owns the body and its head and has two functions: ``collate``,
from samples to a batch, and ``loss``, from a batch to sums and counts.
"""
