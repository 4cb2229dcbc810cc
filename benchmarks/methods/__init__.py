"""Every KV-cache method of the field behind one interface, with its bytes counted from the tensors it holds.

See ``docs/reference/methods.md``; ``python -m benchmarks.methods list`` prints the methods and their knobs.
"""
