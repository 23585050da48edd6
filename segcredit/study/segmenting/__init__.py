"""Segments of texts that are given, rather than sampled."""
