"""Segments between boundaries that a classifier learned from segmented texts."""
