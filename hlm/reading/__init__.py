"""Reading texts with a model in several ways, and whether they agree."""
