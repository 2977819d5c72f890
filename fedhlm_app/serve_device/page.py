"""The page at `/`."""

from __future__ import annotations

import secrets
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from fedhlm_app.results.stages import STAGE_COLOURS, STAGE_WORDS

_TEMPLATE = Environment(autoescape=True, undefined=StrictUndefined).from_string(
    Path(__file__).with_name("page.html").read_text("utf-8")
)


async def page(request: Request) -> HTMLResponse:
    """The page; its own script and style are all that a browser may use."""
    nonce = secrets.token_urlsafe(16)
    stages = [(name, words, STAGE_COLOURS[name]) for name, words in STAGE_WORDS.items()]
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:;"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-store",
    }
    return HTMLResponse(_TEMPLATE.render(nonce=nonce, stages=stages), headers=headers)
