"""A device that serves text between rounds (`fedhlm serve device`); no part of the Flower apps."""
