"""Triton kernels, one operation a file (none yet)."""
