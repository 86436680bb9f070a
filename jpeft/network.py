"""A quick check whether the Hugging Face hub can be reached, instead of its libraries' half a minute of retries."""

import contextlib
import logging
import threading
from collections.abc import Iterator

from jpeft.trouble import first_line

_MOST_SECONDS = 5.0


def why_unreachable(most_seconds: float = _MOST_SECONDS) -> str | None:
    """Returns why the hub cannot be reached, in a few words; None if it responds, with whatever status.

    The request goes through the client of huggingface_hub, so its endpoint, proxies and `HF_HUB_OFFLINE` apply.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    reasons: list[str | None] = []

    def request() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=most_seconds)
            reasons.append(None)
        except Exception as error:  # the HTTP library, and so its errors, depends on the version of huggingface_hub
            reasons.append(first_line(error))

    # In a thread, because resolving the host name has no timeout.
    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(most_seconds)
    return reasons[0] if reasons else f"no answer from {constants.ENDPOINT} in {most_seconds:g} s"


@contextlib.contextmanager
def without_network() -> Iterator[None]:
    """A context in which the hub's libraries use only their local caches, without requests or warnings."""
    from datasets import config as datasets_config
    from huggingface_hub import constants

    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    before = constants.HF_HUB_OFFLINE, datasets_config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets_config.HF_HUB_OFFLINE = True
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets_config.HF_HUB_OFFLINE = before
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
