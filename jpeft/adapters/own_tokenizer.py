"""The tokenizer and the chat template that trainers save beside an adapter, which jpeft does not read."""

from collections.abc import Callable, Mapping
from pathlib import Path

from jpeft.errors import RunFailed, UserError
from jpeft.model.tokenizer import VOCABULARIES, Tokenizer, read_settings, tokenizer_files
from jpeft.words import counted, short, the_first


def note_on_tokenizer(adapter: Path, base_tokenizer: Callable[[], Tokenizer | None]) -> str | None:
    """A note that an adapter's directory has a tokenizer or a chat template that its base has not; None if it has not.

    Args:
      adapter: the adapter's directory.
      base_tokenizer: loads the tokenizer of the base, or gives None if it is not at hand, so that nothing is compared;
        called only if it is needed.

    Raises:
      UserError: the two tokenizers give a token different ids.
    """
    if not tokenizer_files(adapter):
        return None
    base, found = base_tokenizer(), []
    has_vocabulary, own = any((adapter / name).is_file() for name in VOCABULARIES), None
    try:
        if has_vocabulary and base is not None:
            own = Tokenizer.load(adapter, eos_token_id=base.eos_token_id).vocabulary
        template = read_settings(adapter).get("chat_template")
    except (UserError, RunFailed) as error:
        return f"{adapter} has its own tokenizer, not read here and not readable ({str(error).rstrip('.')})"
    if has_vocabulary:
        if base is None or own is None:
            found.append("tokenizer")
        elif more := _tokens_more(adapter, own, base.vocabulary):
            listed = the_first([short(token) for token in more])
            found.append(f"tokenizer ({counted(len(more), 'token')} more: {listed})")
    known = None if base is None else base.chat_template
    if isinstance(template, str) and template.strip() != (known or "").strip():
        found.append("chat template")
    if not found:
        return None
    return (
        f"{adapter} has its own {' and '.join(found)}, not read here: texts become tokens as with the base alone; to "
        "use it, copy its tokenizer's files into a copy of the base, and name that by --model"
    )


def _tokens_more(adapter: Path, own: Mapping[str, int], ids: Mapping[str, int]) -> list[str]:
    """The tokens of an adapter's own vocabulary that the base's lacks. Raises `UserError` if one has another id."""
    moved = next((token for token, id_ in own.items() if ids.get(token, id_) != id_), None)
    if moved is not None:
        raise UserError(
            f"{adapter} has its own tokenizer, in which {short(moved)} is {own[moved]}, and the base's has it as "
            f"{ids[moved]}: the adapter learned other ids; give the base whose tokenizer it was trained with."
        )
    return sorted(own.keys() - ids.keys(), key=own.__getitem__)
