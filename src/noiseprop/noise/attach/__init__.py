"""Attach noise layers to any model, detach them, and save and load their parameters."""
