"""What a ClientApp does in a round: route texts, learn from feedback, answer."""
