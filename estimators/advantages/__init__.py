"""Advantage schemes: from values and rewards to credit. One a file."""
