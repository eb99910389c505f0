"""Ratios against named peers, each measured in one run.

python -m benchmarks             # all of them
python -m benchmarks.imports     # one: prints a table, exits 1 when a bound does not hold
"""
