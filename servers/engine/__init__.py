"""The large model: sessions, batching, packed weights."""
