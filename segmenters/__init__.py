"""Segment definitions: one method a file, named as in its paper."""
