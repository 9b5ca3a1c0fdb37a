"""Diagnostics of a noisy model: noise levels per neuron and checks of its gradients."""
