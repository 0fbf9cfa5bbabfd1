"""Text to token ids by a model's own tokenizer.json; nothing else of a tokenizer is read, and no code of it run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tokenizers

from app.limits import shown
from worker.runnable.runnable import not_runnable

MOST = 512
"""Tokens of a text; what comes after is cut off, unless the tokenizer cuts earlier."""
_FILE_BYTES = 128 << 20


def open_tokenizer(path: Path, longest: int) -> Callable[[list[str]], list[list[int]]]:
    """A function from texts to the ids of each, with the special tokens that the file asks for, cut to `longest` and to what the file itself says.

    Raises:
        InputRefused: not-runnable, where the library does not read the file.
    """
    if path.stat().st_size > _FILE_BYTES:
        raise not_runnable(f"its tokenizer.json has more than {_FILE_BYTES} bytes", "a smaller one")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        own = tokenizer.truncation
        tokenizer.enable_truncation(min(longest, own["max_length"]) if own else longest)
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as e:  # the library panics on some files, which is no Exception
        raise not_runnable(f"its tokenizer.json is not read ({shown(str(e)[:200])})", "one that the tokenizers library wrote, or token ids as calibration data") from None

    def encode(texts: list[str]) -> list[list[int]]:
        return [tokenizer.encode(text).ids for text in texts]

    return encode
