"""Published reasoning traces as the truth of an audit (arXiv 2506.19143)."""
