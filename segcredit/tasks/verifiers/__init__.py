"""Verifiers: whether a completion's final answer is the true one."""
