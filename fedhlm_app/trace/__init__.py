"""Recorded tokens: read by both models once, routed and learned from as often as wanted."""
