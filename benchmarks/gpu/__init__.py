"""Two prepared calls of few minutes each for a GPU machine without a network: `bash benchmarks/gpu/session.sh 1|2`."""
