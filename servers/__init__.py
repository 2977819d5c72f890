"""What runs off the device between tokens: the large-model engine and the edge index."""
