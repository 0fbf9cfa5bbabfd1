"""Text to token ids by a model's own tokenizer.json; nothing else of a tokenizer is read, and no code of it run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from app.limits import shown
from worker.runnable.runnable import not_runnable

MOST = 512
"""Tokens of a text; what comes after is cut off, unless the tokenizer cuts earlier."""
_CHARACTERS = 1 << 16
"""Of a text that the library sees: far more than the tokens that are kept, and it takes seventy bytes for each."""
_FILE_BYTES = 128 << 20


@dataclass(frozen=True)
class Tokenizer:
    """Called with texts, gives the ids of each. `special`: ids of tokens that are no text (they begin, end, part, mask and pad it)."""

    encode: Callable[[list[str]], list[list[int]]]
    special: frozenset[int]

    def __call__(self, texts: list[str]) -> list[list[int]]:
        return self.encode(texts)


def open_tokenizer(path: Path, longest: int) -> Tokenizer:
    """What it gives has the special tokens that the file asks for, and is cut to `longest` and to what the file itself says. When called it raises the same.

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
        special = frozenset(i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special)
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as e:  # the library panics on some files, which is no Exception
        raise not_runnable(f"its tokenizer.json is not read ({shown(str(e)[:200])})", "one that the tokenizers library wrote, or token ids as calibration data") from None

    def encode(texts: list[str]) -> list[list[int]]:
        try:
            return [tokenizer.encode(text[:_CHARACTERS]).ids for text in texts]
        except (KeyboardInterrupt, MemoryError):
            raise
        except BaseException as e:  # a pattern that backtracks without end, a token for what is unknown that is unknown
            why = f"its tokenizer.json does not take {shown(texts[0][:40])} ({shown(str(e)[:200])})"
            raise not_runnable(why, "a tokenizer.json that the tokenizers library wrote, or token ids as calibration data") from None

    return Tokenizer(encode, special)
