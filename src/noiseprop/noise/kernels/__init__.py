"""Kernels of the noise: the Philox stream, its CPU implementation, and the choice between implementations."""
