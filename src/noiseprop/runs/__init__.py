"""Training runs in folders: train and load networks by name, and cache the black-box surrogates."""
