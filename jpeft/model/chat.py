"""How a prompt and its answer stand in a model's tokens: what comes before, between and behind them.

An encoder-decoder reads the prompt with `</s>` and writes the answer with one. A decoder-only model has both in one
text. If it was tuned to chat, its files hold a Jinja template of whole conversations, of which a prompt is the user's
message and the answer the assistant's; otherwise the answer follows the prompt, and the model's end follows it.
"""

import dataclasses
import functools
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from jpeft.errors import UserError
from jpeft.files import read_text
from jpeft.words import clipped, one_line

AUTO, NONE = "auto", "none"  # of `data.chat_template`, which is a file's name otherwise
MOST_CHARACTERS = 100_000  # of a template; those of released models have some thousands
_MOST_WRITTEN = 1_000_000  # characters
_SECONDS, _MEGABYTES = 5, 1024
_QUESTION, _ANSWER = "Qx7question7xQ", "Ax7answer7xA"  # what no template writes itself


@dataclasses.dataclass(frozen=True)
class Wording:
    """What stands around a prompt and its answer, as texts and ids of special tokens.

    Attributes:
      before, after: of the prompt; what is `after` ends where the answer begins.
      lead: text directly before an answer, a part of its first token.
      end: id of the token that ends an answer.
      chat_template: that says so, as text, or `none`; None for models that have no choice.
    """

    before: tuple[str | int, ...] = ()
    after: tuple[str | int, ...] = ()
    lead: str = ""
    end: int = 1
    chat_template: str | None = None


def chat_template_of(choice: str, *, key: str = "data.chat_template") -> str:
    """`auto`, `none`, or the text of the file that a choice names.

    Raises:
      UserError: there is no such file, or it holds no template.
    """
    if choice in (AUTO, NONE):
        return choice
    path = Path(choice).expanduser()
    if not path.exists():
        raise UserError(f"{key} is {clipped(choice, 200)!r}; expected auto, none, or a file with a Jinja template.")
    text = read_text(path, most_bytes=4 * MOST_CHARACTERS)
    if not text.strip() or text.strip() in (AUTO, NONE):
        raise UserError(f"{path} holds no Jinja template of a chat.")
    return text


def wording_of(
    template: str,
    *,
    names: Mapping[str, str],
    control: Mapping[str, int],
    end: int,
    pad: int,
    spaced: bool,
    source: str,
) -> Wording:
    """What a chat template puts around a user's message and the assistant's.

    Args:
      names: special tokens by role, `bos_token` and so on, which templates use.
      control: ids of special tokens by name.
      end: id of the token with which the model stops.
      pad: id of the token that fills rows up.
      spaced: whether the tokenizer puts a space before texts by itself.
      source: whose template it is, for messages.

    Raises:
      UserError: it fails, does not write what it is given, ends an answer with a token at which the model goes on, or
        ends a prompt with the one that fills rows up.
    """
    prompt, whole = _rendered(template, tuple(sorted(names.items())), source)
    if prompt.count(_QUESTION) != 1 or whole.count(_QUESTION) != 1 or whole.count(_ANSWER) != 1:
        raise UserError(f"{source}: the chat template does not write each message once; {_OTHERWISE}.")
    before, _, after = prompt.partition(_QUESTION)
    told, _, rest = whole.partition(_ANSWER)
    if not told.startswith(prompt):
        raise UserError(f"{source}: the chat template begins an answer otherwise than it asks for one; {_OTHERWISE}.")
    written = told[len(prompt) :]
    # What a template writes before an answer, asked to begin one or not, is the prompt's and not the model's to write.
    own = written.rstrip(" ") if written.strip() else ""
    lead = written[len(own) :]
    if spaced and lead.startswith(" "):
        lead = lead[1:]
    asks = _pieces(after + own, control)
    if asks and asks[-1] == pad:
        raise UserError(
            f"{source}: the chat template asks for an answer by the token that fills rows up ({pad}), which would be "
            f"taken for nothing at the end of a prompt; {_OTHERWISE}."
        )
    pieces = _pieces(rest, control)
    ends = [piece for piece in pieces if isinstance(piece, int)]
    if not ends:
        raise UserError(f"{source}: the chat template ends answers with no special token; {_OTHERWISE}.")
    if ends[0] != end:
        name = next(name for name, id_ in control.items() if id_ == ends[0])
        raise UserError(
            f"{source}: the chat template ends answers with {one_line(name)} ({ends[0]}), and the model stops at "
            f"{end}; correct eos_token_id in its config.json, or {_OTHERWISE}."
        )
    return Wording(_pieces(before, control), asks, lead, end, template)


def end_of(template: str, *, names: Mapping[str, str], control: Mapping[str, int], source: str) -> int | None:
    """Id of the token with which a chat template ends an answer; None where it has none. Arguments as of `wording_of`.

    Raises:
      UserError: it fails.
    """
    _, whole = _rendered(template, tuple(sorted(names.items())), source)
    pieces = _pieces(whole.partition(_ANSWER)[2], control)
    return next((piece for piece in pieces if isinstance(piece, int)), None)


_OTHERWISE = "give another with data.chat_template=FILE, or take data.chat_template=none"


def _pieces(text: str, control: Mapping[str, int]) -> tuple[str | int, ...]:
    """A template's own text, cut at the names of special tokens, which become ids."""
    if not text:
        return ()
    names = "|".join(map(re.escape, sorted(control, key=len, reverse=True)))
    parts = re.split(f"({names})", text) if names else [text]
    return tuple(control.get(part, part) for part in parts if part)


@functools.lru_cache(maxsize=16)
def _rendered(template: str, names: tuple[tuple[str, str], ...], source: str) -> tuple[str, str]:
    """The beginning of a chat up to where the answer begins, and the chat with it, with stand-ins for both texts."""
    if len(template) > MOST_CHARACTERS:
        raise UserError(f"{source}: the chat template has {len(template):,} characters; {MOST_CHARACTERS:,} at most.")
    user, assistant = {"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}
    # A model that thinks aloud first unless it is told not to is told so: what is wanted is the answer.
    common = {**dict(names), "tools": None, "documents": None, "enable_thinking": False}
    asked = {
        "template": template,
        "names": common,
        "conversations": [
            {"messages": [user], "add_generation_prompt": True},
            {"messages": [user, assistant], "add_generation_prompt": False},
        ],
        "seconds": _SECONDS,
        "megabytes": _MEGABYTES,
        "most": _MOST_WRITTEN,
    }
    program = Path(__file__).with_name("chat_rendering.py")
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(program)],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=4 * _SECONDS,
        )
        said = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        said = {"error": "it takes too long"}
    except ValueError:  # nothing was written: the limit ended it
        said = {"error": "it takes too long, or too much memory"}
    if "texts" not in said:
        reason = clipped(str(said["error"]).partition("\n")[0], 200)
        raise UserError(f"{source}: the chat template cannot be rendered ({reason}); {_OTHERWISE}.")
    prompt, whole = said["texts"]
    return prompt, whole
