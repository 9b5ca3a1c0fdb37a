"""The method, usable alone on any torch.nn.Module: noise of its own for every neuron, and its gradient."""
