"""Who decides an escalated token: cache, edge, LLM."""
