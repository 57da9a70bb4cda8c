"""What `on_gpu`, `tune` and `resources` need besides: kernels compiled ahead, their starts, checks on the card."""
