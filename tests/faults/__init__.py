"""Faults of the machine: kills, full disks, little memory, two processes at once, dead workers.

The tests try a member of each kind; `benchmarks/faults.py` tries many and writes the counts.
"""
