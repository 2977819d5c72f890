"""The model pair: training one, packing it, loading it, measuring it.

Importing this package is cheap; PyTorch and Transformers come with the first name used.
"""
