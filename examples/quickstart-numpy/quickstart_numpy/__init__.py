"""A stock Flower app in NumPy."""
