"""Chat templates: the tokens before, between and after a prompt and its answer.

An encoder-decoder reads the prompt followed by `</s>` and writes the answer followed by `</s>`. A decoder-only model
has both in one text. If it was tuned to chat, its files hold a Jinja template for whole conversations; the prompt then
is the user's message and the answer the assistant's. Otherwise the answer directly follows the prompt, and the model's
end-of-text token follows the answer.
"""

import dataclasses
import functools
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from jpeft.errors import UserError
from jpeft.files import read_text
from jpeft.words import clipped, one_line, short

AUTO, NONE = "auto", "none"  # values of `data.chat_template`; any other value is the path of a file
MOST_CHARACTERS = 100_000  # in a template; released models' have a few thousand
_MOST_WRITTEN = 1_000_000  # characters
_SECONDS, _MEGABYTES = 5, 1024
_QUESTION, _ANSWER = "Qx7question7xQ", "Ax7answer7xA"  # placeholders that no template contains
_WHITE = (" ", "\n", "\t")  # put around a placeholder, to see which of it a template strips
_VARIED = " aB \n\n 1,\t'\" & <b> \\ {{ c }} \u00e9  "  # put between two placeholders, to see what else it changes

Strip = tuple[str | None, str | None]  # arguments of `lstrip` and of `rstrip`: None for white space, "" for nothing


@dataclasses.dataclass(frozen=True)
class TextPlace:
    """Where a text stands in a conversation, which decides its first and its last token.

    Attributes:
      follows: `nothing` for a text by itself, before which some tokenizers put a space; a special `token`; or `text`.
      strips: whether its leading and its trailing white space belongs to the tokens before and after it.
    """

    follows: Literal["nothing", "token", "text"] = "nothing"
    strips: tuple[bool, bool] = (False, False)

    def stripped(self, text: str) -> str:
        """The text without the white space that belongs to the tokens beside it."""
        return stripped(text, (None if self.strips[0] else "", None if self.strips[1] else ""))


ALONE = TextPlace()


@dataclasses.dataclass(frozen=True)
class Wording:
    """The texts and special-token ids around a prompt and its answer.

    Attributes:
      before: what precedes the prompt.
      after: what separates the prompt from the answer.
      lead: text that is tokenised together with the beginning of the answer, such as a space.
      end: the id of the token that ends an answer.
      chat_template: the template that these were taken from, or `none`; None for an encoder-decoder, which has none.
      tail: white space that is tokenised together with the end of the answer.
      prompt_strip, answer_strip: what the template strips from the messages.
    """

    before: tuple[str | int, ...] = ()
    after: tuple[str | int, ...] = ()
    lead: str = ""
    end: int = 1
    chat_template: str | None = None
    tail: str = ""
    prompt_strip: Strip = ("", "")
    answer_strip: Strip = ("", "")


def stripped(text: str, strip: Strip) -> str:
    """The text without the characters of `strip` at its ends."""
    return text.lstrip(strip[0]).rstrip(strip[1])


def chat_template_of(choice: str, *, key: str = "data.chat_template") -> str:
    """Resolve the value of `data.chat_template`: `auto` and `none` as they are, a path to the file's text.

    Args:
      choice: the configured value.
      key: the name of the config key or flag, for messages.

    Raises:
      UserError: the file does not exist, or holds no template.
    """
    if choice in (AUTO, NONE):
        return choice
    path = Path(choice).expanduser()
    if not path.exists():
        raise UserError(f"{key} is {clipped(choice, 200)!r}; expected auto, none, or a file with a Jinja template.")
    text = read_text(path, most_bytes=4 * MOST_CHARACTERS)
    if not text.strip() or text.strip() in (AUTO, NONE):
        raise UserError(f"{path} holds no Jinja chat template.")
    return text


def chat_template_digest(choice: str | None) -> str | None:
    """The digest of a template's text; None if `data.chat_template` names no file. Raises as `chat_template_of`."""
    if choice is None or choice in (AUTO, NONE):
        return None
    return hashlib.sha256(chat_template_of(choice).encode()).hexdigest()


def wording_of(
    template: str,
    *,
    names: Mapping[str, str],
    control: Mapping[str, int],
    end: int,
    source: str,
) -> Wording:
    """Find what a chat template writes around the user's message and the assistant's answer.

    Args:
      template: the Jinja template.
      names: special tokens by role (`bos_token` and so on), which are variables of the template.
      control: ids of special tokens by name.
      end: the id of the token at which the model stops.
      source: the template's origin, for messages.

    Raises:
      UserError: the template cannot be rendered, does not write each message exactly once and as it is (white space at
        its ends may be stripped), writes text after an answer, or ends it with another token than `end`.
    """
    prompt, whole, *probes = _rendered(template, tuple(sorted(names.items())), source)
    if prompt.count(_QUESTION) != 1 or whole.count(_QUESTION) != 1 or whole.count(_ANSWER) != 1:
        raise UserError(f"{source}: the chat template does not write each message once; {_OTHERWISE}.")
    before, _, after = prompt.partition(_QUESTION)
    until_answer, _, rest = whole.partition(_ANSWER)
    if not until_answer.startswith(prompt):
        raise UserError(f"{source}: the chat template's generation prompt is not how its answers begin; {_OTHERWISE}.")
    written = until_answer[len(prompt) :]
    # Text that the template writes before every answer belongs to the prompt: the model need not generate it.
    own = written.rstrip(" ") if written.strip() else ""
    lead = written[len(own) :]
    prompt_strip = _strip_of(_QUESTION, (before, after), probes[::2], source)
    answer_strip = _strip_of(_ANSWER, (until_answer, rest), probes[1::2], source)
    after_prompt = _pieces(after + own, control)
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
    tail = pieces[0] if isinstance(pieces[0], str) else ""
    if tail.strip():
        raise UserError(
            f"{source}: the chat template writes {short(tail)} between an answer and its end token; expected white "
            f"space at most; {_OTHERWISE}."
        )
    return Wording(_pieces(before, control), after_prompt, lead, end, template, tail, prompt_strip, answer_strip)


def end_of(template: str, *, names: Mapping[str, str], control: Mapping[str, int], source: str) -> int | None:
    """The id of the special token with which a chat template ends an answer, or None; arguments as of `wording_of`.

    Raises:
      UserError: the template cannot be rendered.
    """
    _, whole, *_ = _rendered(template, tuple(sorted(names.items())), source)
    pieces = _pieces(whole.partition(_ANSWER)[2], control)
    return next((piece for piece in pieces if isinstance(piece, int)), None)


_OTHERWISE = "give another with data.chat_template=FILE, or take data.chat_template=none"


def _pieces(text: str, control: Mapping[str, int]) -> tuple[str | int, ...]:
    """Split rendered text at the names of special tokens, and replace those by their ids."""
    if not text:
        return ()
    names = "|".join(map(re.escape, sorted(control, key=len, reverse=True)))
    parts = re.split(f"({names})", text) if names else [text]
    return tuple(control.get(part, part) for part in parts if part)


def _probes(placeholder: str) -> list[str]:
    return [*(f"{white}{placeholder}{white}" for white in _WHITE), f"{placeholder}{_VARIED}{placeholder}"]


def _strip_of(placeholder: str, around: tuple[str, str], texts: Sequence[str], source: str) -> Strip:
    """Find what a template strips from a message, by the rendered `_probes`.

    Args:
      around: what the template writes before and after the message.
      texts: the rendered probes.

    Raises:
      UserError: the template changes the message in another way.
    """
    left, right = set[str](), set[str]()
    *of_white, varied = texts
    for white, text in zip(_WHITE, of_white, strict=True):
        before, _, after = text.partition(placeholder)
        for found, piece, kept, bare in (
            (left, before, around[0] + white, around[0]),
            (right, after, white + around[1], around[1]),
        ):
            if piece == bare:
                found.add(white)
            elif piece != kept:
                raise UserError(_changes(white, source))
    if varied != around[0] + _probes(placeholder)[-1] + around[1]:
        raise UserError(_changes(_VARIED, source))
    as_argument = lambda found: None if len(found) == len(_WHITE) else "".join(sorted(found))
    return as_argument(left), as_argument(right)


def _changes(text: str, source: str) -> str:
    return (
        f"{source}: the chat template changes messages, such as one with {short(text)}; expected one that strips white "
        f"space at most; {_OTHERWISE}."
    )


@functools.lru_cache(maxsize=16)
def _rendered(template: str, names: tuple[tuple[str, str], ...], source: str) -> tuple[str, ...]:
    """Render a chat with placeholder messages.

    Returns:
      The chat up to the generation prompt; the same chat with its answer; and again in turn for each of `_probes`, the
      first with the question replaced by it, the second with the answer.
    """
    if len(template) > MOST_CHARACTERS:
        raise UserError(f"{source}: the chat template has {len(template):,} characters; {MOST_CHARACTERS:,} at most.")
    user = lambda content: {"role": "user", "content": content}
    assistant = lambda content: {"role": "assistant", "content": content}
    chats = [
        *([user(_QUESTION)], [user(_QUESTION), assistant(_ANSWER)]),
        *(
            chat
            for question, answer in zip(_probes(_QUESTION), _probes(_ANSWER), strict=True)
            for chat in ([user(question)], [user(_QUESTION), assistant(answer)])
        ),
    ]
    # `enable_thinking` switches off the reasoning that some models write before the answer.
    common = {**dict(names), "tools": None, "documents": None, "enable_thinking": False}
    request = {
        "template": template,
        "names": common,
        "conversations": [{"messages": chat, "add_generation_prompt": len(chat) == 1} for chat in chats],
        "seconds": _SECONDS,
        "megabytes": _MEGABYTES,
        "most": _MOST_WRITTEN,
    }
    program = Path(__file__).with_name("chat_rendering.py")
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(program)],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=4 * _SECONDS,
        )
        reply = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        reply = {"error": "it takes too long"}
    except ValueError:  # no output: the process was killed by its limits
        reply = {"error": "it takes too long, or too much memory"}
    if "texts" not in reply:
        reason = clipped(str(reply["error"]).partition("\n")[0], 200)
        raise UserError(f"{source}: the chat template cannot be rendered ({reason}); {_OTHERWISE}.")
    return tuple(reply["texts"])
