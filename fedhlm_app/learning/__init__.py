"""The rules by which policies are learned."""
