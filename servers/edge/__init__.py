"""The edge server: what peers had verified, and what it is worth."""
