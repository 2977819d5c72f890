"""Lets the LLM read places it has not seen: for the report, or for rules that calibrate."""

from __future__ import annotations

import numpy as np

from clients.records import TextBatch, TokenFeedback, TokenRecords, Traffic
from clients.resolvers.messages import Sender
from hlm.transport import LinkDown
from hlm.verification import plain_verifier
from hlm.wire import Rows


def read_unseen(
    sender: Sender,
    texts: TextBatch,
    records: TokenRecords,
    traffic: Traffic,
    *,
    learned: bool = False,
) -> None:
    """Let the LLM read every routed place it has not seen, for the report alone.

    The method does not need this, so its bytes go to `traffic.measured` only, and what it finds is
    marked `measured_only`. Call it last: it moves what the server holds.

    With `learned` the method does need it (a rule that calibrates on kept tokens): its bytes are
    traffic like any other, and the device may learn from what it finds.
    """
    unread = (records.draft_choice if learned else records.choice) < 0
    places = np.nonzero(records.present & unread)
    owners, counted = places[0], Traffic()
    if not len(owners) or sender.link.asleep:
        return
    starts, lengths, tokens = sender.lacking(texts, owners, records.position[places])
    rows = Rows(
        texts.sessions[owners], starts, lengths, tokens, records.token[places], quiet=lengths
    )
    plain = plain_verifier(sender.config.sampling.decoding)
    try:
        reply = sender.ask(texts, owners, rows, plain, counted, feedback=True)
    except LinkDown:
        return
    finally:
        traffic.include(counted if learned else counted.as_measured())
    told = reply.feedback_counts > 0
    read = owners[told], places[1][told]
    codes = reply.feedback[np.cumsum(reply.feedback_counts)[told] - 1]
    records.note_feedback(TokenFeedback(*read, codes, np.zeros(len(codes), np.bool_)))
    records.measured_only[read] = not learned
