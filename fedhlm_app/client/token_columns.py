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
    from fedhlm_app.data.workload import BatchMaker

TOKENS = "tokens"
"""Name of the ConfigRecord that carries the columns."""

_WIRE = {"prompt": "<i8", "position": "<i4", "stage": "|i1", "uncertainty": "<f4", "beta": "<f4"}


_TEXTS = ("text", "before")


def token_columns(routed: Routed, settings: Settings, work: BatchMaker) -> dict[str, bytes]:
    """Columns over a round's tokens as little-endian bytes; NaN where beta is unknown.

    With `token-texts` JSON lists of texts too: ``text``, what each token adds, and ``before``, at
    a text's first token what stood before it.
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
        made = list(_texts(routed, work))
        for part, name in enumerate(_TEXTS):
            columns[name] = json.dumps([told[part] for told in made]).encode()
    return columns


def _texts(routed: Routed, work: BatchMaker) -> Iterator[tuple[str, str | None]]:
    """What each token adds to its text and, for a first one, what is before it."""
    for records, rows in zip(routed.records, routed.rows, strict=True):
        given = work.make(rows, np.zeros(len(rows), np.int64))
        for row, first in enumerate(given.first.tolist()):
            prompt = given.texts.tokens[row, :first].tolist()
            made = records.token[row, records.present[row]].tolist()
            stream = TextStream(work.tokenizer, prompt)
            before: str | None = str(work.tokenizer.decode(prompt, skip_special_tokens=True))
            for place, token in enumerate(made, 1):
                yield stream.add(token, last=place == len(made)), before
                before = None


def read_columns(sent: Mapping[str, object]) -> dict[str, Any]:
    """What `token_columns` made, as arrays of one length; texts as lists, None without.

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
    for name in _TEXTS:
        found[name] = None
        if isinstance(texts := sent.get(name), bytes):
            found[name] = json.loads(texts)
            if len(found[name]) != len(found["stage"]):
                raise ValueError(f"token column {name!r}: of another length than the others")
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
                **{name: columns[name] or [None] * count for name in _TEXTS},
            }
        )
