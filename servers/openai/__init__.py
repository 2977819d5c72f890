"""A backend over the completions of any server that speaks OpenAI's API."""
