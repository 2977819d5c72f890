"""What peers agree on, whether they have anything in common, and when to ask them."""
