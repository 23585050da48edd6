"""Policies small enough for a laptop, warm-started on demonstrations."""
