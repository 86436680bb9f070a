"""Renders an untrusted chat template in a separate process: a script that `jpeft.model.chat` runs, not to be imported.

Jinja's immutable sandbox keeps a template from reaching anything outside of it. It does not keep a template from
looping for hours or filling the memory, so the process limits its own CPU time and memory.
"""

import json
import sys


def _limit(seconds: int, megabytes: int) -> None:
    try:
        import resource
    except ImportError:  # Windows has none; the parent process still has a timeout
        return
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (megabytes * 2**20, megabytes * 2**20))


def _render(template: str, names: dict, conversations: list) -> list[str]:
    # The environment is that of transformers without `strftime_now`: prompts must not depend on today's date.
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Accepts `{% generation %}` blocks, which mark the assistant's text, and renders their content unchanged."""

        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, indent=None, **_: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = refuse
    compiled = environment.from_string(template)
    return [compiled.render(**names, **conversation) for conversation in conversations]


def main() -> None:
    """Read a JSON request from standard input and write the rendered texts, or an error, as JSON."""
    request = json.load(sys.stdin)
    _limit(request["seconds"], request["megabytes"])
    try:
        texts = _render(request["template"], request["names"], request["conversations"])
        reply = {"texts": texts} if max(map(len, texts)) <= request["most"] else {"error": "it writes too much"}
    except MemoryError:
        reply = {"error": "it takes too much memory"}
    except Exception as error:  # an untrusted template may raise anything
        reply = {"error": f"{type(error).__name__}: {error}"}
    json.dump(reply, sys.stdout)


if __name__ == "__main__":
    main()
