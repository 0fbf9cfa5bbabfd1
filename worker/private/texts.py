"""What a text file tells, and the same file without it. JSON is read, so that a finding has a key; whatever is no JSON is looked at as lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from app.limits import shown
from worker.private.patterns import MARKER, NAMED, Span, disjoint, masked, named, secrets, spans, without

_CODE = (".py", ".ipynb", ".cpp", ".c", ".cu", ".h", ".js", ".ts", ".sh", ".jinja")
_VOCABULARIES = ("vocab.json", "vocab.txt", "merges.txt", "added_tokens.json", "special_tokens_map.json")
# Of a tokenizer.json: what tokenizers reads. Its pieces and patterns look like paths and addresses, and have to stay as they are.
_TOKENIZER = ("model", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding", "version")
_DEPTH = 100
_MOST = 200  # findings that are listed


class Looked(NamedTuple):
    """Attributes: findings: `{where, what, masked}`. clean: the text without them, None where nothing was found."""

    findings: list[dict]
    clean: str | None


def finding(where: str, what: str, secret: str) -> dict:
    """Where: the file, and the key or member in it. The secret itself is never told, only its length and, of a long one, its first two characters."""
    return {"where": where, "what": what, "masked": masked(secret)}


def listed(findings: list[dict]) -> list[dict]:
    """For the report."""
    more = len(findings) - _MOST
    return findings[:_MOST] + ([{"where": "elsewhere", "what": f"{more} more findings"}] if more > 0 else [])


def look(path: str, text: str) -> Looked:
    """Args: path: of the file, whose name says what is in it."""
    name = PurePosixPath(path).name
    if name.endswith((".json", ".webmanifest")):
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            pass
        else:
            found: list[dict] = []
            clean = values(document, path, found, name)
            return Looked(found, _written(clean, text) if found else None)
    if name.endswith(".jsonl"):
        return _lines(path, text)
    vocabulary = name in _VOCABULARIES or name.endswith(".tiktoken")
    sought = [] if vocabulary else spans(text, code=name.endswith(_CODE), plain=True)
    if vocabulary:  # of a vocabulary only what opens something
        sought = disjoint(list(secrets(text)))
    found, line, at = [], 1, 0
    for s in sought:  # sorted: each line end is counted once
        line, at = line + text.count("\n", at, s.start), s.start
        found.append(finding(f"{path}: line {line}", s.what, text[s.start : s.end]))
    return Looked(found, without(text, sought) if sought else None)


def _lines(path: str, text: str) -> Looked:
    found, out = [], []
    for number, line in enumerate(text.split("\n"), 1):
        looked = look(f"{path}: line {number}.json", line) if line.strip() else Looked([], None)
        found += [f | {"where": f["where"].replace(f"line {number}.json", f"line {number}", 1)} for f in looked.findings]
        out.append(line if looked.clean is None else looked.clean.replace("\n", " "))
    return Looked(found, "\n".join(out) if found else None)


def values(document: Any, where: str, found: list[dict], name: str = "") -> Any:
    """`document` (what JSON holds) without what its strings and keys tell; findings are added to `found`.

    Args:
        name: the file's; of a tokenizer's own parts only keys and passwords are looked for, and vocabularies stay as they are.
    """
    if name == "tokenizer.json" and type(document) is dict:
        bare = {k: _quiet(v) for k, v in document.items() if k in _TOKENIZER}
        kept = {k: _values(v, f"{where}: {k}", k, found, _secrets, 0) for k, v in bare.items()}
        rest = {k: v for k, v in document.items() if k not in _TOKENIZER}
        rest = _values(rest, where, "", found, _all, 0)
        for k, v in bare.items():  # the pieces go back in their places
            rest[k] = _loud(kept[k], document[k]) if k == "model" else kept[k]
        return {k: rest.pop(k) for k in document if k in rest} | rest
    if name in _VOCABULARIES:
        return document if name == "vocab.json" else _values(document, where, "", found, _secrets, 0)
    return _values(document, where, "", found, _all, 0)


def _quiet(model: Any) -> Any:
    return {k: v for k, v in model.items() if k not in ("vocab", "merges")} if type(model) is dict else model


def _loud(clean: Any, model: Any) -> Any:
    return {k: clean.get(k, v) for k, v in model.items()} if type(model) is dict else clean


def _all(key: str, value: str) -> list[Span]:
    """The whole value where its key names somebody."""
    if value and value != MARKER and named(key):
        return [Span(0, len(value), NAMED)]
    return spans(value)


def _secrets(key: str, value: str) -> list[Span]:
    return disjoint(list(secrets(value)))


def _values(value: Any, where: str, key: str, found: list[dict], seek: Callable[[str, str], list[Span]], depth: int) -> Any:
    if type(value) is str:
        if sought := seek(key, value):
            found += [finding(where, s.what, value[s.start : s.end]) for s in sought]
            return without(value, sought)
        return value
    if depth > _DEPTH:
        return value
    if type(value) is list:
        return [_values(v, _below(where, i, depth), key, found, seek, depth + 1) for i, v in enumerate(value)]
    if type(value) is dict:
        out = {}
        for k, v in value.items():
            place = _below(where, k, depth)
            if sought := seek("", k):
                place = _below(where, without(k, sought), depth)
                found += [finding(place, s.what, k[s.start : s.end]) for s in sought]
            k = _free(without(k, sought), out) if sought else k
            out[k] = _values(v, place, k, found, seek, depth + 1)
        return out
    return value


def _below(where: str, key: object, depth: int) -> str:
    return f"{where}{'.' if depth or ': ' in where else ': '}{shown(str(key))[1:-1]}"


def _free(key: str, taken: dict) -> str:
    return next(k for k in _names(key) if k not in taken)


def _names(key: str) -> Iterator[str]:
    yield key
    yield from (f"{key} {i}" for i in range(2, 1 << 30))


def _written(document: Any, before: str) -> str:
    """JSON again, in lines where it was in lines. Lone halves of surrogate pairs are escaped, as UTF-8 has none."""
    text = json.dumps(document, ensure_ascii=False, indent=2 if "\n" in before.strip() else None)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(document, indent=2 if "\n" in before.strip() else None)
    return text + ("\n" if before.endswith("\n") else "")
