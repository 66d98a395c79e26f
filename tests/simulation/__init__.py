"""A simulator for the pool: virtual time, a pretended server, seeded random schedules, and rules checked at every step.

`python -m simulation --help`, run in the folder `tests`, runs any number of schedules and repeats any seed.
"""
