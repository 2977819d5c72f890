"""A client's share of the token log: what happened to each token; its text only if so set."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from clients.records import Stage
from fedhlm_app.client.routed import Routed
from fedhlm_app.models.text_stream import TextStream
from fedhlm_app.results.token_log import TokenLog
from fedhlm_app.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS = "tokens"
"""Name of the ConfigRecord that carries the columns."""

_WIRE = {"prompt": "<i8", "position": "<i4", "stage": "|i1", "uncertainty": "<f4", "beta": "<f4"}


def token_columns(
    routed: Routed, settings: Settings, tokenizer: PreTrainedTokenizerBase
) -> dict[str, bytes]:
    """Columns over a round's tokens as little-endian bytes; NaN where beta is unknown.

    With `token-texts` a JSON list of texts too, under ``text``.
    """
    parts: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in _WIRE}
    for records, rows in zip(routed.records, routed.rows, strict=True):
        row, step = np.nonzero(records.present)
        parts["prompt"].append(np.asarray(rows)[row])
        parts["position"].append(step)
        parts["stage"].append(records.stage[row, step])
        parts["uncertainty"].append(records.uncertainty[row, step])
        parts["beta"].append(records.loss(settings.shared_draw)[row, step])
    columns = {
        name: np.concatenate(values).astype(_WIRE[name]).tobytes() for name, values in parts.items()
    }
    if settings.token_texts:
        columns["text"] = json.dumps(list(_texts(routed, tokenizer))).encode()
    return columns


def _texts(routed: Routed, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """What each token adds to its text, in the order of the columns."""
    for records in routed.records:
        for tokens, present in zip(records.token, records.present, strict=True):
            stream, made = TextStream(tokenizer, []), tokens[present].tolist()
            for place, token in enumerate(made, 1):
                yield stream.add(token, last=place == len(made))


def read_columns(sent: Mapping[str, object]) -> dict[str, Any]:
    """What `token_columns` made, as arrays of one length, and `text` as a list, None without.

    Raises
    ------
    ValueError
        On columns that are missing, no bytes, of different length, or with unknown stages or texts.
    """
    found: dict[str, Any] = {}
    for name, dtype in _WIRE.items():
        value = sent.get(name)
        if not isinstance(value, bytes):
            raise ValueError(f"token column {name!r}: missing, or no bytes")
        found[name] = np.frombuffer(value, dtype)
    if len({len(column) for column in found.values()}) != 1:
        raise ValueError("token columns differ in length")
    if not np.isin(found["stage"], [stage.value for stage in Stage]).all():
        raise ValueError("token column 'stage': unknown stage")
    found["text"] = None
    if isinstance(texts := sent.get("text"), bytes):
        found["text"] = json.loads(texts)
        if len(found["text"]) != len(found["stage"]):
            raise ValueError("token column 'text': of another length than the others")
    return found


class LoggingGrid:
    """A grid that writes the token columns of training replies down on their way.

    Parameters
    ----------
    grid : Grid
        Does the sending.
    log : TokenLog
    """

    def __init__(self, grid: Grid, log: TokenLog) -> None:
        self._grid, self._log = grid, log

    def get_node_ids(self) -> Iterable[int]:
        """Nodes that are connected."""
        return self._grid.get_node_ids()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send, wait, write down, hand on."""
        asked = list(messages)
        clusters = {
            message.metadata.dst_node_id: message.content.config_records["config"]["cluster"]
            for message in asked
            if "config" in message.content.config_records
        }
        replies = list(self._grid.send_and_receive(asked, timeout=timeout))
        for reply in replies:
            if not reply.has_error() and TOKENS in reply.content.config_records:
                self._write(reply, int(cast(int, clusters.get(reply.metadata.src_node_id, 0))))
        return replies

    def _write(self, reply: Message, cluster: int) -> None:
        columns = read_columns(reply.content.config_records[TOKENS])
        metrics = next(iter(reply.content.metric_records.values()))
        count = len(columns["stage"])
        beta = columns["beta"]
        self._log.append(
            {
                "round": [metrics["round"]] * count,
                "client": [metrics["client"]] * count,
                "cluster": [cluster] * count,
                "prompt": columns["prompt"].tolist(),
                "position": columns["position"].tolist(),
                "stage": [Stage(int(stage)).key for stage in columns["stage"]],
                "uncertainty": columns["uncertainty"].tolist(),
                "beta": [None if np.isnan(value) else float(value) for value in beta],
                "text": columns["text"] or [None] * count,
            }
        )
