"""A run directory: what a run writes, and reads back to go on."""
