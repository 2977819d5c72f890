"""The rounds of a ServerApp: clusters, strategy, checkpoints, checks before the first."""
