"""A request that is not served, in the shape of OpenAI's API."""

from __future__ import annotations

import json
from typing import Any


class Refused(Exception):
    """A request that is not served.

    Attributes
    ----------
    status : int
        Of HTTP.
    param : str or None
        The field that is wrong.
    code : str or None
        What programs tell refusals apart by.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def as_json(self) -> dict[str, Any]:
        """The body of an answer, in OpenAI's shape."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        told = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": told}


def shown(value: object) -> str:
    """A value in a message, cut where it is long."""
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
