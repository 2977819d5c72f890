"""A grid without Ray or network, and replies that are well-formed unless told otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

Client = Callable[[Message], Message | None]


class FakeGrid:
    """Nodes are functions from a message to its reply; None is a node that never answers."""

    def __init__(self, clients: dict[int, Client]) -> None:
        self.clients = clients
        self.sent: list[Message] = []

    def get_node_ids(self) -> list[int]:
        return list(self.clients)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        replies = []
        for message in messages:
            self.sent.append(message)
            reply = self.clients[message.metadata.dst_node_id](message)
            if reply is not None:
                replies.append(reply)
        return replies


def answer(
    message: Message,
    policy: object,
    *,
    client: int,
    weight: float = 1,
    server_round: int | None = None,
    arrays: dict[str, np.ndarray] | None = None,
    **metrics: object,
) -> Message:
    """A well-formed reply, unless told otherwise."""
    config = message.content.config_records["config"]
    record = {"policy": Array(np.asarray(policy, dtype=np.float64))}
    record |= {key: Array(np.asarray(value)) for key, value in (arrays or {}).items()}
    numbers = {
        "num-examples": weight,
        "client": client,
        "round": config["round"] if server_round is None else server_round,
        **{key.replace("_", "-"): value for key, value in metrics.items()},
    }
    content = RecordDict({"metrics": MetricRecord(numbers)})
    if message.metadata.message_type == "train":
        content["arrays"] = ArrayRecord(record)
    return Message(content, reply_to=message)


def fail(message: Message, reason: str = "boom", code: int = 0) -> Message:
    return Message(Error(code=code, reason=reason), reply_to=message)


def sends(policy: object, *, client: int, **options: object) -> Client:
    """A node that always sends the same policy."""
    return lambda message: answer(message, policy, client=client, **options)


def received(message: Message, key: str = "policy") -> np.ndarray:
    return message.content.array_records["arrays"][key].numpy()


def settings(message: Message) -> ConfigRecord:
    return message.content.config_records["config"]


def initial(*values: float) -> ArrayRecord:
    return ArrayRecord({"policy": Array(np.array(values, dtype=np.float64))})
