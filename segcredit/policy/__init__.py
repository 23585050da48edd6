"""Models from transformers: load them, sample from them, score what was sampled."""
