"""Tasks that come with segcredit: prompts and their verifiers, generated on the spot."""
