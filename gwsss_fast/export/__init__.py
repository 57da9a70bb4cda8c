"""Exported models: what is written, what it says about itself, and the runtimes that run it again."""
