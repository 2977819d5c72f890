"""A run as a Kubeflow pipeline: five steps a round, each a process of its own, files between."""
