"""Messages of every kind with their bytes, as JSON: what stays as it is when the wire changes.

``python -m tests.hlm.wire_golden`` writes the file anew. Do so only in a commit that says why the
bytes of messages change.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from hlm.verifiers import VERIFIERS
from hlm.wire import (
    Reply,
    Request,
    Rows,
    Status,
    encode_reply,
    encode_request,
)
from hlm.wire.edge import EdgeQuery, EdgeReply, EdgeShare, encode_edge_query, encode_edge_reply
from hlm.wire.edge_probe import EdgeProbe, encode_common, encode_probe
from tests.hlm.wire_messages import random_reply, random_request
from tests.wire_rows import Row, RowReply, listed, reply_of, rows_of, told

PATH = Path(__file__).parent / "golden" / "wire.json"
EACH = 3
MOST_BYTES = 1500


def plain(value: object) -> Any:
    """A message as JSON."""
    if isinstance(value, Reply):
        return {"rows": plain(told(value))}
    if isinstance(value, Request | Row | RowReply):
        found = {field.name: plain(getattr(value, field.name)) for field in fields(value)}
        return {name: item for name, item in found.items() if item is not None}
    if isinstance(value, Rows):
        value = listed(value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, np.generic):
        return value.item()
    return value


def restored(made: type, entry: dict[str, Any]) -> Any:
    """The message that `plain` wrote."""
    found: dict[str, Any] = {}
    for name, value in entry.items():
        if name == "rows":
            of, row = (rows_of, Row) if made is Request else (reply_of, RowReply)
            found[name] = of([restored(row, item) for item in value])
        elif name == "feedback" and made is RowReply:
            found[name] = np.array(value, np.uint8)
        elif name == "status":
            found[name] = Status(value)
        elif isinstance(value, dict):
            found[name] = bytes.fromhex(value["hex"])
        elif isinstance(value, list):
            found[name] = np.array(value, np.int64)
        else:
            found[name] = value
    return found["rows"] if made is Reply else made(**found)


def exchanges() -> list[dict[str, Any]]:
    """Some requests and replies of every verifier."""
    random = np.random.default_rng(5)
    found: list[dict[str, Any]] = []
    for verifier in VERIFIERS:
        made = 0
        while made < EACH:
            request = random_request(random, verifier, most_sessions=4)
            reply = random_reply(random, request)
            sent, answered = encode_request(request), encode_reply(reply, request)
            if len(sent) + len(answered) > MOST_BYTES:
                continue
            made += 1
            entry = {"request": plain(request), "reply": plain(reply)}
            found.append({**entry, "sent": sent.hex(), "answered": answered.hex()})
    return found


def edge_messages() -> dict[str, str]:
    """One message of each kind between devices and edge servers."""
    random = np.random.default_rng(6)
    share = EdgeShare(
        numbers=np.array([3, 4]),
        rows=np.array([0, 2]),
        answers=np.array([17, 4000]),
        keys=random.integers(0, 256, (2, 16), dtype=np.uint8),
        tokens=np.array([5, 6]),
        verified=np.array([True, False]),
    )
    query = EdgeQuery(
        client=7,
        number=5,
        vocab=4096,
        keys=random.integers(0, 256, (3, 16), dtype=np.uint8),
        drafts=np.array([9, 10, 4095]),
        share=share,
    )
    reply = EdgeReply(outcomes=np.array([1, 0, 2]), tokens=np.array([9, -1, 11]))
    probe = EdgeProbe(client=7, prints=np.array([3, 9, 77_000]))
    return {
        "query": encode_edge_query(query).hex(),
        "reply": encode_edge_reply(reply, query).hex(),
        "probe": encode_probe(probe).hex(),
        "common": encode_common(np.array([True, False, True])).hex(),
    }


if __name__ == "__main__":
    # A message is one line, so that a change shows which ones it touches.
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in exchanges())
    edge = json.dumps(edge_messages())
    PATH.write_text(f'{{"exchanges": [\n{lines}\n],\n"edge": {edge}}}\n', encoding="utf-8")
