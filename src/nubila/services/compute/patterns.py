"""Regular expressions in list filters, as SQL where they are simple enough.

Nova hands such filters to the database's REGEXP, which SQLite and PostgreSQL spell or lack in their own ways. Most
real ones are plain text, anchors and ``.*``: those become LIKE. The rest is matched here, row by row, and only when the
expression is too simple to run away (no group or alternative with a quantifier, at most three quantifiers).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from nubila.core.faults import bad_request

MAX = 255
_SIMPLE = re.compile(r"(?:\\[^a-zA-Z0-9]|\.\*|\.|[^\\.^$*+?{}\[\]|()])*")
_PART = re.compile(r"\\(?P<escaped>.)|(?P<any>\.\*)|(?P<one>\.)|(?P<text>.)", re.S)


def like(pattern: str) -> str | None:
    """The LIKE text (escape character \\) with the same meaning, None when there is none."""
    start, end = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith("\\$")
    inner = pattern[1 if start else 0 : len(pattern) - (1 if end else 0)]
    if not _SIMPLE.fullmatch(inner):
        return None
    out = [] if start else ["%"]
    for part in _PART.finditer(inner):
        if part["any"]:
            out.append("%")
        elif part["one"]:
            out.append("_")
        else:
            text = part["escaped"] or part["text"]
            out.append("\\" + text if text in "%_\\" else text)
    return "".join(out) + ("" if end else "%")


def predicate(name: str, pattern: str) -> Callable[[str | None], bool]:
    """A function that matches rows here. Raises 400 for what cannot be compiled or could run away."""
    try:
        compiled = re.compile(pattern, re.I)
    except re.error as e:
        raise bad_request(f"Invalid input for query parameter {name}: not a regular expression: {e}.") from None
    if len(re.findall(r"[*+?{]", pattern)) > 3 or re.search(r"\)[*+?{]", pattern) or re.search(r"\\[1-9]", pattern):
        raise bad_request(f"Invalid input for query parameter {name}: this regular expression is too complex.")
    return lambda text: compiled.search(text or "") is not None


def clause(column: Any, name: str, pattern: str) -> tuple[Any, Callable[[str | None], bool] | None]:
    """(WHERE clause, None) or (None, predicate for rows)."""
    if len(pattern) > MAX:
        raise bad_request(f"Invalid input for query parameter {name}: longer than {MAX} characters.")
    text = like(pattern)
    if text is not None:
        return sa.func.lower(column).like(text.lower(), escape="\\"), None
    return None, predicate(name, pattern)
