"""Cleaning of news text, as the built-in pair was trained on it."""

from __future__ import annotations

import html
import re

CLEANING_RULES = 1
"""Raised whenever :func:`clean_text` or :func:`join_text` gives another text."""

# AG News writes entities without their ampersand ("#39;s", "#36;2.6 billion").
_BARE_ENTITY = re.compile(r"(?<!&)#(\d{1,5});")
_TAG = re.compile(r"<[^>]+>")
_SPACE = re.compile(r"\s+")
_NOT_SLUG = re.compile(r"[^a-z0-9]+")


def clean_text(raw: str) -> str:
    r"""Clean one field of an article.

    A backslash-n and any other backslash become a space, HTML entities become their characters
    (also those that lost their ampersand, and those encoded twice), tags go, and runs of white
    space become one space.

    Parameters
    ----------
    raw : str
        Text as published.

    Returns
    -------
    str
        Clean text, possibly empty.

    Examples
    --------
    >>> clean_text("Wednesday #39;s  &lt;b&gt;game&lt;/b&gt;\\nin Rome")
    "Wednesday 's game in Rome"
    """
    text = raw.replace("\\n", " ").replace("\\", " ")
    text = _BARE_ENTITY.sub(r"&#\1;", text)
    text = html.unescape(html.unescape(text))
    return _SPACE.sub(" ", _TAG.sub(" ", text)).strip()


def join_text(fields: list[str]) -> str:
    """Clean the fields of an article and join them, ``title. description``.

    Parameters
    ----------
    fields : list of str
        Raw fields in reading order; empty ones leave no trace.

    Returns
    -------
    str
        Clean text, empty if all fields are.
    """
    cleaned = (clean_text(field) for field in fields)
    return ". ".join(field for field in cleaned if field)


def label_slug(name: str) -> str:
    """Reduce a label name to lower-case letters and digits, ``Sci/Tech`` to ``scitech``."""
    return _NOT_SLUG.sub("", name.lower())
