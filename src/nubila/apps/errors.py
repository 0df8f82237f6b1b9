"""The refusals of a service, read from its source: what documents list, so that no error is left out.

Finds the calls that make a fault (core/faults.py and the service's own short forms) and shows their message with the
places that are filled at run time as <name>. A message says which field is wrong and what to do.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

STATUS = {
    "bad_request": 400, "expecting": 400, "unauthorized": 401, "denied": 401, "forbidden": 403, "not_found": 404,
    "conflict": 409, "unavailable": 503, "over_quota": 403,
}  # fmt: skip
"""Functions that make a fault, and its status."""
TEMPLATES = {
    "not_found": "<kind> <id> could not be found.",
    "expecting": "Expecting to find <part> in <place>.",
    "unauthorized": "The request needs a valid token.",
    "denied": "Authentication is required: log in with valid credentials.",
}


_INTRODUCTION = """\
Every refusal the service can make, as its answer says it; `<name>` is filled in when it happens. The answer is
`{"error": {"code": 400, "title": "Bad Request", "message": "..."}}`. A message names what is wrong and what to do.
Besides: 400 for a body or query that breaks the schema of the operation (the message names the field), 403 when policy
does not allow the operation (it names the rule), 404 and 405 for paths and methods that are not there, 413 for a body
that is too large, 500 with the id of the request, which is in the log.
"""


@dataclass(frozen=True, order=True)
class Error:
    """One refusal: HTTP status and message; <name> is filled in when it happens."""

    status: int
    message: str


def errors(folder: Path) -> list[Error]:
    """Every refusal that the modules below a folder can make, in order of status and text."""
    found: set[Error] = set()
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                found.update(_made(node))
    return sorted(found)


def _made(call: ast.Call) -> Iterator[Error]:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name == "Fault" and len(call.args) >= 2 and isinstance(call.args[0], ast.Constant):
        for text in _texts(call.args[1]):
            yield Error(int(repr(call.args[0].value)), text)
    elif name in STATUS:
        if name in ("not_found", "expecting"):
            yield Error(STATUS[name], TEMPLATES[name])
            return
        at = 1 if name == "denied" else 0
        texts = list(_texts(call.args[at])) if len(call.args) > at else []
        for text in texts or ([TEMPLATES[name]] if name in TEMPLATES else []):
            yield Error(STATUS[name], text)


def _texts(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(str(p.value) if isinstance(p, ast.Constant) else _place(p) for p in node.values)
    elif isinstance(node, ast.IfExp):
        yield from _texts(node.body)
        yield from _texts(node.orelse)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        for left in _texts(node.left):
            for right in _texts(node.right):
                yield left + right


def _place(part: ast.expr) -> str:
    inner = part.value if isinstance(part, ast.FormattedValue) else part
    while isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute) and inner.args:
        inner = inner.args[0]  # ", ".join(names): what is joined
    if isinstance(inner, ast.Subscript) and isinstance(inner.slice, ast.Constant):
        return f"<{inner.slice.value!s}>"
    names = [n.attr if isinstance(n, ast.Attribute) else n.id for n in ast.walk(inner)
             if isinstance(n, ast.Attribute | ast.Name)]  # fmt: skip
    return f"<{names[0].lower() if names else 'value'}>"


def page(title: str, prefix: str, found: list[Error]) -> str:
    """The document."""
    lines = [f"# Errors of {title}", "", f"<!-- {prefix} -->", "", _INTRODUCTION, "| Status | Message |", "|---|---|"]
    lines += [f"| {e.status} | {_cell(e.message)} |" for e in found]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")
