"""What a job will cost and give, before it runs: bytes, memory, scratch disk, seconds. From headers alone, and better where values can be looked at.

Which tensors are worked on and how a folder lies on disk is decided by the code that the work itself uses, so what has a fixed rate is exact.
Entropy-coded bytes depend on the values: of those that can be read a sample is looked at, else weights are taken to be as training leaves them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

from app import advice, compressed, packed_size, speeds
from app.bundled import BUNDLE, Bundle
from app.changed import shared_threshold
from app.errors import InvalidJobSpec, NotEstimable
from app.foreseen import foreseen
from app.formats import FORMATS
from app.job_spec import JobSpec
from app.layout import Folder, dense_parts, header
from app.memory import peak_memory, proof_wanted, run_bytes
from app.outline import Outline, TensorSpec
from app.packed_size import Look, Size, Text, Told, container_size, tensor_size
from app.recipe import Lossless, Prune, Quantize, matcher
from app.sensitive import strips
from app.targets import Treatment
from app.values import DRAWN_LEAST, DRAWN_MOST, WIDTH, Values, drawn, from_bytes
from app.width import reader, treated

_PIECES = 8
_BUDGET = 3 << 17  # values read of a whole model
_LOOKED = 1 << 12  # tensors that are looked at, the largest; the others are few bytes, or there are very many
_DRAWN = 1 << 21  # drawn values of a whole model, those of equal tensors counted once
_KINDS = 1 << 13
_TEXT = 1 << 20
_TEXTS, _LEAST = 32 << 20, 1 << 14  # bytes of text read of a whole model; what one read counts for at least
_NOTES = 50
_START = 2.0  # seconds

Read = Callable[[str, int, int], bytes]  # (path, begin, end)


@dataclass
class Estimate:
    """What is made: `files` by path; `rows` one for each tensor; `sampled` whether values were looked at."""

    files: dict[str, Size] = field(default_factory=dict)
    rows: list[dict] = field(default_factory=list)
    sampled: bool = False
    doubt: str | None = None  # why bytes are not exact; None for what is entropy-coded

    @property
    def total(self) -> Size:
        return sum(self.files.values(), Size(0))


def estimate(model: Outline, spec: JobSpec, read: Read | None, rate: float | None = None) -> dict:
    """The answer of `POST /v1/estimates`, without what only the service knows.

    Args:
        read: bytes of a file; None where there are only headers.
        rate: bytes of input a second, as workers have measured it.

    Raises: what `check_estimable`, `treat` and `app.foreseen.foreseen` raise.
    """
    check_estimable(spec)
    if spec.recipe.searches:
        told = foreseen(model, spec, lambda plain: estimate(model, plain, read, rate))
        worked_on = treated(model, spec.recipe.stand_in, spec.output.format)[1].values()
        return told | {"peak_memory": peak_memory(worked_on, proof=proof_wanted(spec.output.format, model.files), runs=run_bytes(spec))}
    output, recipe = spec.output.format, spec.recipe
    if spec.sanitize == "strip":
        weights = set(model.weight_files)
        model = replace(model, files={p: n for p, n in model.files.items() if p in weights or not strips(p)})
    before = sum(model.files.values())
    model, treatments, narrowing = treated(model, recipe, output)
    read = reader(read, narrowing) if narrowing else read
    made = Estimate(sampled=read is not None)
    if output == "pt2":
        _program(made, model, treatments)
    elif output == "packed":
        _packed(made, model, spec, treatments, looker(model, read), texter(model, read))
    else:
        _folder(made, model, treatments, output, texter(model, read))
    total, proof = made.total, proof_wanted(output, model.files)
    seconds = _START + before / (rate or _default_rate(treatments)) + _running(spec, before) + (speeds.PROVE + before * speeds.STAGES["prove"] if proof else 0)
    return {
        "output_format": output,
        "bytes_before": before,
        "bytes_after": round(total.total),
        "bytes_least": math.floor(total.total - total.margin),
        "bytes_most": math.ceil(total.total + total.margin),
        "exact": not total.margin,
        "basis": "layout" if not total.margin else "sample" if made.sampled else "headers",
        "ratio": round(before / max(1, total.total), 4),
        "files": [{"path": p, "bytes": round(s.total), "exact": not s.margin} for p, s in sorted(made.files.items())],
        "actions": _actions(made.rows),
        "tensors": made.rows,
        "peak_memory": peak_memory(treatments.values(), proof=proof, runs=run_bytes(spec)),
        "scratch_bytes": before + math.ceil(total.total + total.margin),
        "seconds": round(seconds, 1),
        "seconds_basis": "measured" if rate else "default",
        "next": advice.beside(recipe, output, advice.given(spec.model_dump()), round(total.total), spec.gates.max_bytes),
        "loaders": list(next(f.loaders for f in FORMATS if f.name == output)),
        "notes": list(islice(_notes(treatments, made), _NOTES)),
    }


def check_estimable(spec: JobSpec) -> None:
    """Raises: InvalidJobSpec for a restore."""
    if spec.recipe.kind == "restore":
        raise InvalidJobSpec("there is nothing to estimate in a restore; it gives back what was uploaded", pointer="/recipe")


def looker(model: Outline, read: Read | None) -> Look:
    """What is known of a tensor's values: a sample of its floats, bytes of its integers, drawn weights without `read`.

    Raises:
        NotEstimable: it would take long, for there are too many tensors that differ and cannot be looked at.
    """
    readable = {} if read is None else {n: t for n, t in model.tensors.items() if n in model.offsets and t.nbytes}
    largest = sorted(readable.values(), key=lambda t: -t.nbytes)[:_LOOKED]
    share = _share([math.prod(t.shape) for t in largest])
    seen: dict[str, Values | bytes | None] = {t.name: None for t in largest}
    kinds = len({(t.dtype, t.shape) for n, t in model.tensors.items() if n not in seen})
    if kinds > _KINDS:
        raise NotEstimable(f"there are {kinds} tensors of different shapes or dtypes; what {_KINDS} come to is told at most")
    each = min(DRAWN_MOST, max(DRAWN_LEAST, 1 << (_DRAWN // max(1, kinds)).bit_length() - 1))

    def look(spec: TensorSpec) -> Values | bytes | None:
        if spec.name not in seen:
            return drawn(spec.dtype, each) if spec.dtype in WIDTH else None
        if seen[spec.name] is None:
            seen[spec.name] = _values(spec, model.offsets[spec.name], read, share)
        return seen[spec.name]

    return look


def _share(counts: list[int]) -> int:
    """The most values of one tensor that can be read so that all together keep to the budget; the least is a few hundred."""
    left = _BUDGET
    for i, count in enumerate(counts := sorted(counts)):
        if count * (len(counts) - i) > left:
            return max(256, left // (len(counts) - i))
        left -= count
    return _BUDGET


def _values(spec: TensorSpec, at: int, read: Read, share: int) -> Values | bytes:
    width = spec.nbytes // math.prod(spec.shape)
    count, piece = spec.nbytes // width, share // _PIECES
    if count <= share:
        raw = read(spec.file, at, at + spec.nbytes)
    else:
        starts = [((2 * i + 1) * count // (2 * _PIECES) - piece // 2) // 64 * 64 for i in range(_PIECES)]  # not at the edges, where rows are often unused
        raw = b"".join(read(spec.file, at + s * width, at + (s + piece) * width) for s in starts)
    return from_bytes(spec.dtype, raw) if spec.dtype in WIDTH else raw


def texter(model: Outline, read: Read | None) -> Text:
    """The first part of a file's bytes that are in no tensor; None where so much was read that what is left has to be guessed."""
    inside: dict[str, list[tuple[int, int]]] = {}
    for name, spec in model.tensors.items() if read else ():
        if (at := model.offsets.get(name)) is not None:
            inside.setdefault(spec.file, []).append((at, at + spec.nbytes))
    left = _TEXTS

    def text(path: str) -> bytes | None:
        nonlocal left
        if read is None or left <= 0:
            return None
        body = bytearray()
        for begin, end in _gaps(inside.get(path, []), model.files[path]):
            body += (piece := read(path, begin, min(end, begin + _TEXT - len(body))))
            left -= max(len(piece), _LEAST)
            if len(body) >= _TEXT or left <= 0:
                break
        return bytes(body)

    return text


def _gaps(spans: list[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    at = 0
    for begin, end in sorted(spans):
        if begin > at:
            yield at, begin
        at = max(at, end)
    if at < size:
        yield at, size


def _packed(made: Estimate, model: Outline, spec: JobSpec, treatments: dict[str, Treatment], look: Look, text: Text) -> None:
    whole, recipe = spec.recipe.kind == "lossless", spec.recipe
    thresholds = {id(s): _threshold(s, treatments, look) for s in recipe.step(Prune) if s.scope == "global"}
    wanted = [matcher(s) for s in recipe.steps]
    sizes, described, bundle, shared = {}, [], Bundle(), Size(0)
    known: dict[tuple, Size | Told] = {}  # drawn values are the same for many tensors
    for name, t in treatments.items():
        small = False
        if whole and not t.spec.nbytes:
            size = Size(0)
        elif whole and not any(w(name) for w in wanted):
            size = packed_size.raw_size(t.spec)
        else:
            alike = id(look(t.spec)), t.spec.dtype, t.spec.shape, t.transposed, t.experts, repr(t.steps)
            if alike not in known:
                known[alike] = packed_size.dense_size(t.spec, look(t.spec)) if whole else tensor_size(t, look, thresholds.get(id(t.step(Prune))))
            size = known[alike]
        if isinstance(size, Told):
            small = bundle.takes(math.prod(t.spec.shape) * (2 if t.spec.dtype.startswith("C") else 1), size.beside, size.sparse)
            size = size.bundled if small else size.own
            shared += size if small else Size(0)
        if t.spec.nbytes or not whole:
            sizes |= {} if small else {name: size}
            described.append(packed_size.described(t, model.offsets.get(name, 0), whole, small))
        made.rows.append(_row(t, size))
    if shared.total:
        sizes[BUNDLE] = shared
    kept = packed_size.beside(model, whole)
    rest = packed_size.rest_size(model, kept, headers=whole, text=text)
    if rest.total:
        sizes[packed_size.REST] = rest
    made.files[packed_size.NAME] = container_size(sizes, packed_size.index_of(model, kept, described, whole, recipe, BUNDLE in sizes))


def _threshold(step: Prune, treatments: dict[str, Treatment], look: Look) -> int:
    weights: dict[int, tuple[Values, int]] = {}
    for t in treatments.values():
        if step in t.steps:
            values = look(t.spec)
            weights[id(values)] = values, weights.get(id(values), (values, 0))[1] + math.prod(t.spec.shape)
    return shared_threshold(list(weights.values()), step.sparsity)


def _folder(made: Estimate, model: Outline, treatments: dict[str, Treatment], output: str, text: Text) -> None:
    parts = compressed.parts(model, treatments) if output == "compressed-tensors" else dense_parts(model)
    layout = Folder(model, parts)
    for name, t in treatments.items():
        made.rows.append(_row(t, Size(sum(e.nbytes for e in parts[name]))))
    for path, entries in layout.entries.items():
        made.files[layout.paths[path]] = Size(len(header(entries)) + sum(e.nbytes for e in entries))
    if index := layout.weight_map():
        made.files[index[0]] = Size(len(index[1]))
    if output == "compressed-tensors":
        made.files[compressed.config_path(model)] = Size(len(compressed.config_text(model, treatments)))
    for path in layout.beside():
        made.files.setdefault(path, Size(model.files[path]))


def _program(made: Estimate, model: Outline, treatments: dict[str, Treatment]) -> None:
    """The input again: what is stripped of a program (stack traces, sample inputs) is known only once it is parsed."""
    (path,) = model.weight_files
    weights = sum(t.nbytes for t in model.tensors.values())
    rest = max(0, model.files[path] - weights)
    made.files[path] = Size(weights + rest / 2, rest / 2)
    made.doubt = "how much of the program is stripped (stack traces, sample inputs) depends on it"
    made.rows += [_row(t, Size(t.spec.nbytes)) for t in treatments.values()]


def _row(t: Treatment, size: Size) -> dict:
    action = "quantized" if t.quantize else "pruned" if t.step(Prune) or t.cut else "encoded" if t.step(Lossless) else "copied"
    row = {"name": t.spec.name, "action": action, "bytes_before": (t.cut or t).spec.nbytes, "bytes_after": round(size.total), "exact": not size.margin}
    return row | ({"reason": t.reason} if action == "copied" and t.reason else {}) | ({"notes": list(t.notes)} if t.notes else {})


def _actions(rows: list[dict]) -> dict[str, dict]:
    out: dict[str, dict] = {}
    for r in rows:
        told = out.setdefault(r["action"], {"tensors": 0, "bytes_before": 0, "bytes_after": 0})
        for key, n in (("tensors", 1), ("bytes_before", r["bytes_before"]), ("bytes_after", r["bytes_after"])):
            told[key] += n
    return out


def _default_rate(treatments: dict[str, Treatment]) -> float:
    """Bytes of input a second, where no worker has measured its own; the slowest step counts, and what is done around it."""
    slowest = max((speeds.of(s) for t in treatments.values() for s in t.steps), default=speeds.COPY)
    return 1 / (slowest + sum(speeds.STAGES[stage] for stage in ("fetch", "verify", "store")))


def _running(spec: JobSpec, nbytes: int) -> float:
    """Seconds in which the model itself runs: for its gradients, in training, and to be measured."""
    samples = sum(step.recover.steps * step.recover.batch_size for step in spec.recipe.steps if getattr(step, "recover", None))
    recipe = spec.recipe
    learned = max((step.steps for step in recipe.step(Quantize) if step.learns), default=0)
    stages = {"calibrate": recipe.needs_gradients and not spec.gradients, "reconstruct": recipe.reconstructs, "measure": spec.calibration is not None}
    return nbytes * (speeds.TRAIN * samples + speeds.LEARN * learned + sum(speeds.STAGES[stage] for stage, wanted in stages.items() if wanted))


def _notes(treatments: dict[str, Treatment], made: Estimate) -> Iterator[str]:
    alike: dict[str, list[str]] = {}
    for name, t in treatments.items():
        for note in t.notes:
            alike.setdefault(note.replace(f" of {name}", ""), []).append(name)
        if not t.steps and t.reason and not t.cut:
            alike.setdefault(f"left alone: {t.reason}", []).append(name)
    for what, names in alike.items():
        yield f"{len(names)} tensor{'s' * (len(names) > 1)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}): {what}"
    if made.doubt:
        yield made.doubt
    elif made.total.margin:
        yield "entropy-coded bytes depend on the values: " + (
            "told from a sample of them" if made.sampled else "told for weights as training leaves them; an estimate of an uploaded model looks at its values"
        )
    if narrowed := [t.cut for t in treatments.values() if t.cut]:
        yield f"{len(narrowed)} tensors of feed-forward layers shrink, {narrowed[0].before} -> {narrowed[0].after} hidden units"
    if any(t.quantize or t.step(Prune) for t in treatments.values()):
        yield "a tensor with NaN or infinite values is copied, which only the work itself finds out"
