"""Kernels of the noise: the Philox stream, its implementations, and the choice between them."""
