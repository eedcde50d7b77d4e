"""How fast rxbus is beside its peers, and what they do differently.

python -m pytest benchmarks --benchmark-only       times, group by group
python -m pytest benchmarks/test_behaviour.py      the table of behaviours
python -m pytest benchmarks/test_memory.py         that publishing leaves no memory
python -m benchmarks.ratios                        the project's targets, from interleaved rounds
"""
