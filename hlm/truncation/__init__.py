"""Uploading part of a distribution (CU-HLM): top-k, the k* rule, integer weights."""
