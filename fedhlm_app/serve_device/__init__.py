"""A device that serves text (`fedhlm serve device`); no part of the Flower apps."""
