"""The Flower ClientApp: what a client does in a round, imported when it is first asked for.

Flower loads the app in the process that starts Ray, before it does so, and there nothing is routed:
PyTorch and Transformers would only hold it up for seconds.
"""

from __future__ import annotations

from logging import WARN

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.common.logger import log

from fedhlm_app.foreign import foreign_packages

app = ClientApp()
for line in foreign_packages():
    log(WARN, line)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Route a round's tokens, learn from them, and send back the policy and sums."""
    from fedhlm_app.client import rounds as client_rounds

    return client_rounds.train(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Route held-out texts with the policy as it is."""
    from fedhlm_app.client import rounds as client_rounds

    return client_rounds.evaluate(message, context)


@app.query()
def introduce(message: Message, context: Context) -> Message:
    """Tell the server which data partition this node is and, where asked, its profile.

    In a simulation this is when a client process imports what its rounds need, since the LLM is
    being started meanwhile. Of a SuperNode the process ends with its answer.
    """
    from fedhlm_app.client import profiles

    if not context.run_config.get("llm-address"):
        import fedhlm_app.client.rounds  # noqa: F401
    return profiles.introduce(message, context)
