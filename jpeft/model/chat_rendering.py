"""Renders a chat template in a process of its own: a program that `jpeft.model.chat` starts, not a module to import.

A template is a stranger's program. Jinja's immutable sandbox keeps it from everything but its text; what it may still
do is to count for hours or to fill the memory, against which only a process with limits of its own helps.
"""

import json
import sys


def _limit(seconds: int, megabytes: int) -> None:
    try:
        import resource
    except ImportError:  # not on Windows; whoever waits for this process gives up after a while
        return
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (megabytes * 2**20, megabytes * 2**20))


def _render(template: str, names: dict, conversations: list) -> list[str]:
    # As transformers renders. `strftime_now` is left out: with today's date in it a prompt would be another tomorrow.
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what a model writes; it is no text."""

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
    """Reads what to render from standard input and writes the texts, or the reason why there are none, as JSON."""
    asked = json.load(sys.stdin)
    _limit(asked["seconds"], asked["megabytes"])
    try:
        texts = _render(asked["template"], asked["names"], asked["conversations"])
        said = {"texts": texts} if sum(map(len, texts)) <= asked["most"] else {"error": "it writes too much"}
    except MemoryError:
        said = {"error": "it takes too much memory"}
    except Exception as error:  # whatever a stranger's template raises is the reason that it cannot be used
        said = {"error": f"{type(error).__name__}: {error}"}
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    main()
