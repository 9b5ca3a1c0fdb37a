"""Judging a network: statistics, one call that scores clean, attacked and corrupted images, and checks that it was fair."""
