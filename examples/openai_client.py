"""A text from `fedhlm serve device` with OpenAI's client, streamed: who decided which token."""

import os

import openai

address = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8472/v1")
client = openai.OpenAI(base_url=address, api_key="none")
prompt = "Shares of the airline"
for chunk in client.completions.create(model="fedhlm", prompt=prompt, max_tokens=20, stream=True):
    for token in chunk.fedhlm.get("tokens", []):
        print(f"{token['stage']:14} {token['uncertainty']:.2f} {token['text']!r}")
print(chunk.fedhlm["stages"], chunk.fedhlm["bytes"])
