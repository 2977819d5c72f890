"""What a device learns from and what it sends for learning."""
