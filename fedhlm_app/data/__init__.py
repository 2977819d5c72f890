"""Texts for the clients: reading them, dividing them among clients, making prompts of them."""
