"""What all benchmarks share: cases and sizes, peers, checks, clocks, ceilings, and the lines that are kept."""
