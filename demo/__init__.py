"""Sequence-parallel attention on a real video clip. Run with `make demo` or `python -m demo`."""
