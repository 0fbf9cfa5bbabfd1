"""Judges pickles that are never read, by the globals that they name."""

from __future__ import annotations

import io
import pickletools
import re
from collections.abc import Callable
from typing import Any

from app.errors import InputRefused
from app.limits import Limits


def scan_globals(data: bytes, check: Callable[[str, str], Any], limits: Limits, pickles: int = 1) -> None:
    """Look at the globals of pickles that stand one after another, until something else follows them.

    Args:
        check: called with module and name; raises for one that is refused.
        pickles: so many must be well-formed, unless the data ends before. With 0 the data need not be a pickle at all.

    Raises:
        InputRefused: what `check` raises; unsafe-pickle for what only running the pickle would tell; limit-entries.
    """
    stream, whole, count = io.BytesIO(data), 0, 0
    try:
        while stream.tell() < len(data):
            for opcode, arg, _ in pickletools.genops(stream):
                count += 1
                if count > limits.pickle_opcodes:
                    raise InputRefused("limit-entries", f"the pickles have more than {limits.pickle_opcodes} opcodes")
                if opcode.name in ("GLOBAL", "INST"):
                    module, _, name = arg.partition(" ")
                    check(module, name)
                elif opcode.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
                    raise InputRefused("unsafe-pickle", f"the pickle names code by {opcode.name}")
            whole += 1
    except ValueError as e:
        # Unknown opcodes and missing bytes stop every reader; of a malformed argument another reader may make something.
        if whole < pickles or not (pickles or re.search("unknown|remain|exhausted|no newline|not enough data", str(e))):
            raise InputRefused("unsafe-pickle", f"the pickle is malformed, so that nobody knows what it does: {str(e)[:80]}") from None
