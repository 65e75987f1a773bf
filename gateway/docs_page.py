"""GET /docs: the routes for a person to read, from the same table as /openapi.json. No script and nothing from afar."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from html import escape
from typing import Any

from gateway.openapi import openapi_document

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Headrace {version}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem }}
td {{ border-top: 1px solid #8884; padding: .3rem 1.5rem .3rem 0; vertical-align: top }}
</style>
</head>
<body>
<h1>Headrace {version}</h1>
<p>Every field of every request and answer: <a href="/openapi.json">/openapi.json</a>, OpenAPI 3.1, for any viewer.</p>
<table>
{rows}
</table>
</body>
</html>
"""


@cache
def docs_page(version: str) -> bytes:
    document = openapi_document(version)
    rows = [
        _row(method, path, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    return _PAGE.format(version=escape(version), rows="\n".join(rows)).encode()


def _row(method: str, path: str, operation: Mapping[str, Any]) -> str:
    takes = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    name = str(takes.get("$ref", "")).rpartition("/")[2]
    cells = (f"<code>{method.upper()} {escape(path)}</code>", escape(operation["summary"]), f"<code>{name}</code>")
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
