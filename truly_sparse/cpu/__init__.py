"""Compiled loops for float32 on a CPU, and how they are entered."""
