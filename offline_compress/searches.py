"""The rules of ``--search``: each is the module of its name below ``offline_compress.ranks.rules``.

A new rule is a file there, its name here, and a test. Standard library only, so that ``--help`` is quick.
"""

UNIFORM = "uniform"
BUDGET = "budget"  # the rule that --target-compression and --bytes-per-token ask for, none of --search
SEARCHES = (UNIFORM, "fisher", "fisher_uniform", "energy", "sensitivity", "lorc", "matryoshka")
FISHER_SEARCHES = ("fisher", "fisher_uniform")  # those that the report counts samples of
ENERGY_SEARCHES = ("energy", "sensitivity")  # those that ``--k-cost`` acts on
