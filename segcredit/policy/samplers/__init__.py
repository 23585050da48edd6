"""Samplers: plug-ins that draw tokens from a model."""
