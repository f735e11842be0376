"""Loading without a word: warnings of Python and log records of transformers are errors."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging


class _Strict(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@contextmanager
def silence() -> Iterator[None]:
    """Fails if something inside warns, by whichever way."""
    handler, logger = _Strict(), logging.getLogger("transformers")
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_warning()
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        logger.removeHandler(handler)
        transformers_logging.set_verbosity(before)
    assert handler.said == []
