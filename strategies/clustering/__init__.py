"""Clusters learned from clients' profiles: two-sample tests, k-means, and their quality."""
