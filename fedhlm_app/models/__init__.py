"""Loading the models of a pair."""
