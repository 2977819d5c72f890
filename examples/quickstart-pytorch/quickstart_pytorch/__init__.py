"""A stock Flower app in PyTorch."""
