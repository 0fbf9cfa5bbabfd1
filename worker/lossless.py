"""A recipe that changes no value: whole files by segments, every byte of which comes back."""

from __future__ import annotations

from pathlib import Path

from app.recipe import Recipe, check_matched, matcher
from worker import report
from worker.checkpoint import Checkpoint
from worker.formats.packed import PACKED_NAME, Stored, pack_files, verify_packed
from worker.progress import Emit, Progress


def compress(checkpoint: Checkpoint, recipe: Recipe, output: str, files: Path, emit: Emit) -> tuple[list[dict], dict]:
    """Pack every file of `checkpoint` into one; the proof decodes them again and compares SHA-256 digests.

    Returns:
        the rows of the report, and its load proof.

    Raises:
        NoTensorMatched: the step's targets name no tensor.
    """
    matches = [(matcher(step), step.level) for step in recipe.steps]

    def keep(name: str) -> bool:
        return any(match(name) for match, _ in matches)

    def scaled(name: str) -> bool:
        return any(match(name) for match, level in matches if level == "max")

    check_matched(recipe, checkpoint.tensors)
    total = sum(p.stat().st_size for p in checkpoint.files.values())
    stored = pack_files(checkpoint, files / PACKED_NAME, keep, Progress(emit, "compress", total).add, scaled)
    digests = verify_packed(files / PACKED_NAME, Progress(emit, "verify", total).add)
    rows = _rows(checkpoint, stored, keep) + report.leftover_rows(checkpoint, stored=True)
    return rows, {"reader": "modelpress packed", "files": digests, "proof": "every file decoded again; its SHA-256 is that of the input"}


def _rows(checkpoint: Checkpoint, stored: list[Stored], keep) -> list[dict]:
    """The first tensor of a segment answers for its bytes; others that view the same storage say so."""
    rows, seen = [], {}
    for s in stored:
        for name in (s.segment.tensors if s.segment else ()):
            seen.setdefault(name, s)
    answered: set[tuple[str, int]] = set()
    for name, spec in checkpoint.tensors.items():
        s = seen.get(name)  # an empty tensor has no bytes, so no segment
        place = s and (s.file, s.segment.offset)
        first = s is not None and place not in answered
        answered.add(place)
        notes = [] if first or s is None else [f"shares its bytes with {s.segment.tensors[0]}"]
        done = keep(name)
        rows.append(
            report.row(
                spec, "encoded" if done else "copied", s.bytes_after if first else 0,
                reason=None if done else "not targeted", notes=notes, relative_error=0.0,
            )  # fmt: skip
        )
    return rows
