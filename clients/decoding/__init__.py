"""The small model and the lockstep loop that routes its tokens."""
