"""Several processes as one run: who holds which rows and weights."""
