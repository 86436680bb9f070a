"""The tokens with which answers begin and end, from the files of a checkpoint that name them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jpeft.errors import UserError
from jpeft.files import read_json_object
from jpeft.model.config_fields import MOST_CONFIG_BYTES
from jpeft.words import shortened

GENERATION_CONFIG = "generation_config.json"
# Settings that change which tokens `generate()` of `transformers` takes, and their values that change nothing beside
# none, [] and {}. Sampling is left out: answers here are the likeliest, and nobody expects them to be drawn.
_DECODING: dict[str, float | None] = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "guidance_scale", "num_beams"), 1),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), 0),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "forced_decoder_ids"), None),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids"), None),
    **dict.fromkeys(("sequence_bias", "exponential_decay_length_penalty", "stop_strings"), None),
}


def with_generation_tokens(directory: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The values of a `config.json` with the tokens that the `generation_config.json` beside it names, if there is one.

    That is what `transformers` begins answers with and stops at when it generates. The end of `config.json`, which ends
    texts in training, comes first where it is one of them.

    Raises:
      UserError: the file is malformed, or begins answers with another token than `config.json`.
    """
    file = directory / GENERATION_CONFIG
    if not file.is_file():
        return values
    generation = read_json_object(file, most_bytes=MOST_CONFIG_BYTES)
    return {**values, **_start(file, generation, values), **_ends(file, generation, values)}


def _start(file: Path, generation: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    start, own = (held.get("decoder_start_token_id") for held in (generation, values))
    if start is None:
        return {}
    if type(start) is not int:
        raise UserError(f"{file}: decoder_start_token_id is {shortened(start)}; expected an integer.")
    if own not in (None, start):
        raise UserError(
            f"{file}: decoder_start_token_id is {shortened(start)}, and {shortened(own)} in config.json: answers would "
            "begin otherwise than in training; make them the same."
        )
    return {"decoder_start_token_id": start}


def _ends(file: Path, generation: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    ends = generation.get("eos_token_id")
    if ends is None:
        return {}
    ends = list(ends) if isinstance(ends, list) else [ends]
    if (wrong := next((end for end in ends if type(end) is not int), None)) is not None:
        raise UserError(f"{file}: eos_token_id holds {shortened(wrong)}; expected an integer, or a list of integers.")
    own = values.get("eos_token_id")
    if own in ends:
        ends = [own, *(end for end in ends if end != own)]
    return {"eos_token_id": ends if len(ends) > 1 else ends[0] if ends else own}


def named_by_tokenizer(directory: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a decoder's `config.json`, with the tokenizer's end of sequence where they have none.

    A directory without a tokenizer, of which only logits can be asked, stays as it is.

    Raises:
      UserError: there is a tokenizer that names no end, either.
    """
    from jpeft.model.tokenizer import VOCABULARIES, Tokenizer

    if values.get("eos_token_id") is not None or not any((directory / name).is_file() for name in VOCABULARIES):
        return dict(values)
    return {**values, "eos_token_id": Tokenizer.load(directory, eos_token_id=None, continues=True).eos_token_id}


def settings_passed_over(directory: Path) -> str | None:
    """A note on the settings of a `generation_config.json` that change what `transformers` generates, and nothing here.

    Raises:
      UserError: the file is malformed.
    """
    file = directory / GENERATION_CONFIG
    if not file.is_file():
        return None
    generation = read_json_object(file, most_bytes=MOST_CONFIG_BYTES)
    asked = [
        f"{key}={shortened(generation[key])}"
        for key, neutral in _DECODING.items()
        if generation.get(key) not in (None, [], {}, neutral)
    ]
    if not asked:
        return None
    return f"{file} asks for {', '.join(asked)}, which jpeft does not take from it: transformers may answer otherwise"
