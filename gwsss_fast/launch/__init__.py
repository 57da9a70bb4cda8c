"""Starts the Triton kernels of `kernels/`: allocates their results, picks their tiles, knows when they cannot run."""
