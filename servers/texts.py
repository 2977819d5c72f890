"""Which texts the engine holds, and whose they are.

A text is known by its client, its number and the identity of the device process that began it: two
devices of one number, or two runs at once, never share one. Later messages name client and numbers
and show a digest of the tokens they build on, keyed by the identity (`hlm.wire.prefix`), so rows
are served from those tokens or not at all. Whoever shows none hears the same whether there is such
a text or not. Where a token proves who asks, no other device reaches a text even with its digest.
"""

from __future__ import annotations

import numpy as np

from hlm.wire import PrefixDigest, Request, joint_digest
from hlm.wire.prefix import IDENTITY_BYTES
from servers.backend import Backend, Feed

TextName = tuple[int, int]
"""Client and number of its text, as a message says them."""
SessionKey = tuple[int, int, bytes]
"""The same, and whose it is: the identity of the device, then its name if a token proves one."""


class HeldTexts:
    """Finds the engine's sessions that a request goes on.

    Parameters
    ----------
    engine : Backend
        Its sessions are keyed by `SessionKey`.
    """

    def __init__(self, engine: Backend) -> None:
        self.engine = engine
        self._texts: dict[TextName, dict[bytes, PrefixDigest]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def begin(self, session: SessionKey) -> None:
        """Know a text by its name from now on, once the engine has read its first tokens.

        Not before: names of texts that the engine does not hold are dropped now and then.
        """
        name, whose = session[:2], session[2]
        if self._count > 2 * self.engine.max_sessions:
            self._drop_evicted()
        known = self._texts.setdefault(name, {})
        self._count += whose not in known
        known[whose] = PrefixDigest(whose[:IDENTITY_BYTES])

    def owner(self, request: Request, device: str) -> bytes | None:
        """Whose texts hold all tokens that a device's request builds on, if there are any.

        None also if the request builds on none.
        """
        rows = request.rows
        sessions, starts = rows.sessions[rows.builds].tolist(), rows.starts[rows.builds].tolist()
        if not starts:
            return None
        for whose in self._texts.get((request.client, sessions[0]), {}):
            if whose[IDENTITY_BYTES:] != device.encode():
                continue
            prefixes = [
                self._prefix((request.client, session, whose), start)
                for session, start in zip(sessions, starts, strict=True)
            ]
            held = [prefix for prefix in prefixes if prefix is not None]
            identity = whose[:IDENTITY_BYTES]
            if len(held) == len(starts) and joint_digest(identity, held) == request.digest:
                return whose
        return None

    def cut(self, session: SessionKey, length: int) -> None:
        """Forget what a text has from position `length` on."""
        if self.engine.held(session) <= length:
            return
        nothing = np.empty(0, np.int64)
        self.engine.score([Feed(session, length, nothing, nothing)])
        if state := self._texts.get(session[:2], {}).get(session[2]):
            # Its state may be of tokens that are gone.
            state.at(self.engine.tokens(session), length)

    def _prefix(self, key: SessionKey, start: int) -> tuple[int, int, bytes] | None:
        state = self._texts.get(key[:2], {}).get(key[2])
        if state is None or self.engine.held(key) < start:
            return None
        return key[1], start, state.at(self.engine.tokens(key), start)

    def _drop_evicted(self) -> None:
        for name, known in list(self._texts.items()):
            for identity in [one for one in known if not self.engine.held((*name, one))]:
                del known[identity]
            if not known:
                del self._texts[name]
        self._count = sum(map(len, self._texts.values()))
