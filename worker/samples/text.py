"""Calibration data of words: lines of text, JSON lines, JSON. A sample is a text, or the ids of its tokens.

    .txt             a line is a text; blank lines are passed over
    .jsonl .ndjson   a line is {"text": "..."}, {"input_ids": [..]}, "...", or [..]
    .json            a list of the same
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from app.errors import InputRefused, MalformedJson
from app.limits import Limits, shown
from app.safetensors_header import check_json
from app.strict import parse_json

MOST_BYTES, MOST_SAMPLES, MOST_IDS = 256 << 20, 1_000_000, 64_000_000
_JSON = 64 << 20  # a list is parsed as a whole
_HALF = re.compile("[\ud800-\udfff]")
_FORMS = '{"text": "..."}, {"input_ids": [1, 2, 3]}, a string, or a list of token ids'


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text that are not blank.

    Raises:
        InputRefused: invalid-calibration, limit-entries, limit-expand.
    """
    data = _bytes(path, MOST_BYTES)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise invalid(f"{shown(path.name)} is not UTF-8 at byte {e.start}") from None
    lines = [line for line in re.split(r"\r\n|\n|\r", text) if line.strip()]
    return _counted(lines, path)


def read_values(path: Path) -> list:
    """The values of a .jsonl file's lines, or of a .json file's list.

    Raises:
        InputRefused: see `read_lines`; limit-depth.
    """
    limits = Limits()
    if path.suffix != ".json":
        return [_parsed(line.encode(), f"{shown(path.name)}, line {i}", limits) for i, line in enumerate(read_lines(path), 1)]
    values = _parsed(_bytes(path, _JSON), shown(path.name), limits)
    if not isinstance(values, list):
        raise invalid(f"{shown(path.name)} must hold a list of samples, each {_FORMS}")
    return _counted(values, path)


def words(values: list, name: str) -> tuple[list[str], list[np.ndarray]]:
    """Texts or token ids (int64 [T], T >= 1) of parsed values; one of the two lists is empty.

    Raises:
        InputRefused: invalid-calibration, naming the sample.
    """
    texts: list[str] = []
    tokens: list[np.ndarray] = []
    total = 0
    for i, value in enumerate(values):
        if isinstance(value, dict):
            known = [k for k in ("text", "input_ids") if k in value]
            if len(known) != 1:
                raise invalid(f"sample {i} of {shown(name)} has the members {', '.join(map(shown, list(value)[:5]))}; needed is {_FORMS}")
            value = value[known[0]]
        if isinstance(value, str):
            if _HALF.search(value):
                raise invalid(f"sample {i} of {shown(name)} holds half a surrogate pair (\\ud800 to \\udfff), which is no character")
            texts.append(value)
        elif isinstance(value, list) and value and all(type(n) is int and 0 <= n < 1 << 31 for n in value):
            total += len(value)
            if total > MOST_IDS:
                raise InputRefused("limit-entries", f"{shown(name)} holds more than {MOST_IDS} token ids")
            tokens.append(np.array(value, dtype=np.int64))
        else:
            raise invalid(f"sample {i} of {shown(name)} is none of {_FORMS}")
        if texts and tokens:
            raise invalid(f"sample {i} of {shown(name)} is {'tokens' if isinstance(value, list) else 'text'}, those before are not; give one kind")
    return texts, tokens


def invalid(detail: str) -> InputRefused:
    return InputRefused("invalid-calibration", detail)


def _bytes(path: Path, most: int) -> bytes:
    if (size := path.stat().st_size) > most:
        raise InputRefused("limit-expand", f"{shown(path.name)} has {size} bytes; at most {most} are taken: a few hundred samples are enough")
    return path.read_bytes()


def _counted(values: list, path: Path) -> list:
    if len(values) > MOST_SAMPLES:
        raise InputRefused("limit-entries", f"{shown(path.name)} has {len(values)} samples; at most {MOST_SAMPLES} are taken: a few hundred are enough")
    return values


def _parsed(data: bytes, where: str, limits: Limits):
    check_json(data, limits, pairs=2 * MOST_SAMPLES, containers=2 * MOST_SAMPLES)
    try:
        return parse_json(data)
    except MalformedJson as e:
        raise invalid(f"{where}: {e.detail}") from None
