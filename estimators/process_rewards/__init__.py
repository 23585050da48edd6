"""Process rewards: what a segment earns by itself, one a file."""
