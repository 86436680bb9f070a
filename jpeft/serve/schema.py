"""The server's requests and responses, as its OpenAPI document describes them."""

from typing import Annotated, Any, TypeAlias

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictBool

from jpeft.serve.shelf import NAME_PATTERN

_MOST_COLUMNS = 64  # of a row
Columns: TypeAlias = Annotated[dict[str, JsonValue], Field(min_length=1, max_length=_MOST_COLUMNS)]


class Problem(BaseModel):
    """Why a request was not answered."""

    detail: str


class Prediction(BaseModel):
    """The answer to one input."""

    text: str
    output_tokens: int = Field(description="Tokens of the text, its end included.")
    ended: bool = Field(description="False where the text was cut at `max_output_tokens`.")
    input_cut: bool = Field(
        description="Whether the input was longer than the adapter's run took; its longest column lost its end."
    )
    notes: list[str] = Field(
        description="What of the input the model could not read as it stands: characters that its vocabulary lacks, "
        "and special tokens that the input spells, which are read as text."
    )
    confidence: float | None = Field(
        description="Mean log-probability of the tokens of a chosen label; null for what is generated."
    )
    probabilities: dict[str, float] | None = Field(
        description="Probability of each label, among these labels, where one was chosen; null for what is generated."
    )


class Predictions(BaseModel):
    """The answers to a request's inputs, in their order."""

    adapter: str | None
    predictions: list[Prediction]


class HowAsked(BaseModel):
    """How an adapter takes inputs and gives answers: template, labels and lengths, as in the run that trained it."""

    template: str | None = Field(
        description="The template that is applied; null where there is none: a text is the whole prompt."
    )
    columns: list[str] | None = Field(description="Columns that the template names, for inputs that are objects.")
    answers: str = Field(description="`labels`: one is chosen. `text`: it is generated.")
    labels: list[str] | None
    max_input_tokens: int = Field(
        description="The longest input, the template's tokens included. Longer ones are cut, as in the adapter's run; "
        "they are refused where there is no template, and where this server takes less than the run, as a note says."
    )
    max_output_tokens: int = Field(description="The longest generated answer, where a request does not say otherwise.")
    notes: list[str] = Field(description="Where answers may differ from those of the adapter's own run.")


class Adapters(BaseModel):
    """The adapters that are loaded, and the names of those that could be."""

    capacity: int = Field(description="How many adapters can be loaded at once.")
    loaded: list[str]
    available: list[str] = Field(description="Names in the operator's directory, loaded or not.")
    not_served: dict[str, str] = Field(
        description="What is in the operator's directory and cannot be loaded, or could not when it was tried, and why."
    )
    asked: dict[str, HowAsked] = Field(description="How each loaded adapter is asked.")
    base: HowAsked = Field(description="How the base alone is asked.")


class Loaded(BaseModel):
    """The adapter that was loaded."""

    name: str
    method: str


class Health(BaseModel):
    """The response to a health check."""

    status: str


Name = Annotated[
    str, Path(pattern=NAME_PATTERN, description="Name of a directory in the operator's directory of adapters.")
]


def no_other_kind(value: Any) -> Any:
    """Refuses values that Python accepts as integers and JSON Schema does not, such as booleans."""
    if isinstance(value, bool | str):
        raise ValueError("should be a number")
    return value


class GenerationFields(BaseModel):
    """A request for answers; a server restricts `inputs` and `max_output_tokens` to its own limits."""

    model_config = ConfigDict(extra="forbid")

    inputs: list[str | dict[str, JsonValue]]
    adapter: str | None = Field(None, pattern=NAME_PATTERN, description="null is the base without an adapter.")
    template: StrictBool = Field(
        True, description="Whether the adapter's template is applied; if not, a text is the whole prompt."
    )
    labels: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=2)] | None = Field(
        None,
        description="Labels to choose from, in the place of the adapter's own, also in a list of labels at the end of "
        "the prompt. They need room (`--label-tokens`).",
    )
    generate: StrictBool = Field(False, description="Whether to generate though the adapter has labels.")
    max_output_tokens: int | None = None
