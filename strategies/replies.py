"""A round's replies, sorted into what counts, what is refused and who failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from logging import INFO, WARNING

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.supercore import log

from strategies.records import Failure
from strategies.sampling import Node
from strategies.validation import Refusal, ReplySchema, Update, validate_replies

AWAY = (
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
)
"""Errors that Flower writes in the place of a node that is away."""


def sort_replies(
    replies: Iterable[Message], schema: ReplySchema, asked: Mapping[int, Node]
) -> tuple[list[Update], list[Refusal], list[Failure]]:
    """Sort the replies of the nodes in `asked` (by node id).

    A node that sent an error, or nothing before the round's time ran out, has failed; the round
    goes on without it.
    """
    answered: list[Message] = []
    errors: dict[int, Error] = {}
    for message in replies:
        if message.has_error():
            errors[message.metadata.src_node_id] = message.error
        else:
            answered.append(message)
    updates, refused = validate_replies(answered, schema)
    updates, odd = drop_odd_lists(updates)
    heard_of = {message.metadata.src_node_id for message in answered}
    failed = [
        _failure(node, errors.get(node_id))
        for node_id, node in asked.items()
        if node_id not in heard_of
    ]
    return updates, refused + odd, failed


def _failure(node: Node, error: Error | None) -> Failure:
    if error is None:
        return Failure(node.node_id, node.client, "no reply", silent=True)
    reason = error.reason or "unknown error"
    return Failure(node.node_id, node.client, reason, silent=error.code in AWAY)


def log_replies(
    what: str, updates: list[Update], refused: list[Refusal], failed: list[Failure]
) -> None:
    """Log a leg's replies as Flower's own strategies do, and what was refused of them."""
    bad = len(refused) + len(failed)
    log(INFO, "%s: Received %s results and %s failures", what, len(updates), bad)
    for failure in failed:
        line = "\t> Received error in reply from node %d: %s"
        log(INFO, line, failure.node_id, failure.reason)
    for refusal in refused:
        line = "\t> Refused reply from node %d: %s (%s)"
        log(WARNING, line, refusal.node_id, refusal.reason, refusal.detail)


def drop_odd_lists(updates: list[Update]) -> tuple[list[Update], list[Refusal]]:
    """Refuse replies whose list metrics have another length, or kind, than most others'.

    Sums of lists (risk curves) need equal lengths; without this a single reply could decide
    which length counts. Ties go to the reply that comes first.
    """
    shapes: dict[str, Counter[int]] = {}
    for update in updates:
        for name, value in update.metrics.items():
            shapes.setdefault(name, Counter())[_length(value)] += 1
    usual = {name: counts.most_common(1)[0][0] for name, counts in shapes.items()}
    kept: list[Update] = []
    refused: list[Refusal] = []
    for update in updates:
        odd = [name for name, value in update.metrics.items() if _length(value) != usual[name]]
        if odd:
            refused.append(
                Refusal("bad-metric", update.node_id, update.client, f"shape of {odd[0]!r}")
            )
        else:
            kept.append(update)
    return kept, refused


def _length(value: object) -> int:
    return len(value) if isinstance(value, list) else -1


def why_failed(what: str, server_round: int, refused: list[Refusal], failed: list[Failure]) -> str:
    """Say why a round without a usable reply has none, naming the first few clients."""
    shown = [f"{_who(entry)}: {entry.reason} ({entry.detail})" for entry in refused]
    shown += [f"{_who(entry)}: {entry.reason}" for entry in failed]
    return (
        f"{what} of round {server_round}: no usable reply; {len(failed)} clients failed or were "
        f"silent, {len(refused)} replies were refused: " + "; ".join(shown[:5])
    )


def _who(entry: Refusal | Failure) -> str:
    return f"client {entry.client}" if entry.client >= 0 else f"node {entry.node_id}"
