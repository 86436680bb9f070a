"""The way to the Hugging Face hub: whether it can be reached, asked shortly before libraries try for half a minute."""

import contextlib
import logging
import threading
from collections.abc import Iterator

from jpeft.trouble import first_line

_MOST_SECONDS = 5.0


def why_unreachable(most_seconds: float = _MOST_SECONDS) -> str | None:
    """Why the hub cannot be reached, in a few words, or None where it answers, whatever it says.

    Asked through the client of huggingface_hub, so that its endpoint, proxies and `HF_HUB_OFFLINE` count.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    answers: list[str | None] = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=most_seconds)
            answers.append(None)
        except Exception as error:  # which library's errors these are differs between versions of huggingface_hub
            answers.append(first_line(error))

    # In a thread: what looks up the name of the host knows no limit of time.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(most_seconds)
    return answers[0] if answers else f"no answer from {constants.ENDPOINT} in {most_seconds:g} s"


@contextlib.contextmanager
def without_network() -> Iterator[None]:
    """Within it the hub's libraries look in their caches alone, at once and without warnings of their own."""
    from datasets import config as of_datasets
    from huggingface_hub import constants

    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    before = constants.HF_HUB_OFFLINE, of_datasets.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = of_datasets.HF_HUB_OFFLINE = True
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        constants.HF_HUB_OFFLINE, of_datasets.HF_HUB_OFFLINE = before
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
