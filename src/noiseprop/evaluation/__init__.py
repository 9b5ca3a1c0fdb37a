"""Judging a network: statistics, one call that scores it clean, attacked and corrupted, and checks on that call."""
