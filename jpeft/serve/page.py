"""`/docs`: the server's OpenAPI document as one static page without scripts or other files."""

import html
import json
from collections.abc import Iterator, Mapping
from typing import Any

_STYLE = """body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font: 14px/1.4 ui-monospace, monospace; background: #8882; border-radius: 4px; }
code { padding: 1px 4px; } pre { padding: .7rem; overflow-x: auto; }
section { border-top: 1px solid #8886; margin-top: 1.5rem; } table { border-collapse: collapse; }
td, th { text-align: left; vertical-align: top; padding: 2px 1.2rem 2px 0; }
:root { color-scheme: light dark; }"""


def document_page(document: Mapping[str, Any]) -> str:
    """Renders an OpenAPI document as an HTML page."""
    info = document["info"]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f"<title>{_text(info['title'])}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{_text(info['title'])} {_text(info['version'])}</h1><p>{_text(info.get('description', ''))}</p>",
        '<p>The same as a document for programs: <a href="openapi.json"><code>openapi.json</code></a>.</p>',
        *_operations(document),
        "<h2>Values</h2>",
        *_schemas(document),
        "</body></html>",
    ]
    return "\n".join(parts)


def _operations(document: Mapping[str, Any]) -> Iterator[str]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"<section><h3><code>{method.upper()} {_text(path)}</code></h3>"
            yield f"<p>{_text(operation.get('description') or operation.get('summary', ''))}</p>"
            for parameter in operation.get("parameters", ()):
                name, schema = _text(parameter["name"]), _named(parameter["schema"])
                yield f"<p><code>{name}</code>: {schema}. {_text(parameter.get('description', ''))}</p>"
            if "requestBody" in operation:
                content = operation["requestBody"]["content"]["application/json"]["schema"]
                yield f"<p>Takes {_named(content)}:</p>{_call(document, path, content)}"
            yield "<table>"
            for status, response in operation["responses"].items():
                content = next(iter(response.get("content", {}).values()), {}).get("schema")
                says, gives = _text(response["description"]), _named(content) if content else ""
                yield f"<tr><td><code>{status}</code></td><td>{says}</td><td>{gives}</td></tr>"
            yield "</table></section>"


def _call(document: Mapping[str, Any], path: str, content: Mapping[str, Any]) -> str:
    """A `curl` command with the examples of the schema."""
    schema = _resolved(document, content)
    examples = {
        name: each["examples"][0] for name, each in schema.get("properties", {}).items() if each.get("examples")
    }
    body = json.dumps(examples, ensure_ascii=False)
    return f"<pre>{_text(f'curl localhost:8000{path} --json {body!r}')}</pre>"


def _schemas(document: Mapping[str, Any]) -> Iterator[str]:
    for name, schema in document.get("components", {}).get("schemas", {}).items():
        required = schema.get("required", ())
        yield f'<section><h3 id="{_text(name)}">{_text(name)}</h3><p>{_text(schema.get("description", ""))}</p><table>'
        for key, value in schema.get("properties", {}).items():
            default = f"; default <code>{_text(json.dumps(value['default']))}</code>" if "default" in value else ""
            needed = "; required" if key in required else ""
            yield (
                f"<tr><td><code>{_text(key)}</code></td><td>{_named(value)}{_limits(value)}{needed}{default}</td>"
                f"<td>{_text(value.get('description', ''))}</td></tr>"
            )
        yield "</table></section>"


def _named(schema: Mapping[str, Any]) -> str:
    """A short description of a schema; a named schema is a link to it."""
    if "$ref" in schema:
        name = _text(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_named, schema["anyOf"])))
    if schema.get("type") == "array":
        return f"list of {_named(schema.get('items', {}))}"
    if isinstance(schema.get("additionalProperties"), Mapping):
        return f"object of {_named(schema['additionalProperties'])}"
    return _text(schema.get("type", "any value"))


def _limits(schema: Mapping[str, Any]) -> str:
    found = [each for each in (schema, *schema.get("anyOf", ())) if isinstance(each, Mapping)]
    words = {"minimum": "at least", "maximum": "at most", "maxItems": "at most", "pattern": "matching"}
    said = [f"{words[key]} {each[key]}" for each in found for key in words if key in each]
    return f" ({_text(', '.join(said))})" if said else ""


def _resolved(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" not in schema:
        return schema
    return document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]


def _text(value: object) -> str:
    return html.escape(str(value))
