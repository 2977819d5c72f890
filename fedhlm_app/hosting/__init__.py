"""Actors and processes beside the apps: the LLM and the edge servers of a run."""
