"""`POST /v1/estimates`: what a job would cost and give. Nothing is queued, and nothing has to be uploaded."""

from __future__ import annotations

import json
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Query, Request
from pydantic import Field

from app import customer_keys, meters
from app.api.artifacts import storage_of
from app.api.customer_key import CustomerKeySent
from app.api.jobs import JobRequest
from app.api.requests import read_json
from app.api.schemas import body_schema
from app.auth import Owner, ReadingOwner
from app.cache import cache_key, found
from app.compose import check_paths
from app.db import reading
from app.errors import InputRefused, InvalidJobSpec, NotEstimable
from app.estimate import check_estimable, estimate
from app.formats import Limits, SafetensorsHeader, parse_safetensors_header
from app.inputs import check_input, find_companions, find_input, has_config, job_kind, outlined
from app.job_spec import JobSpec, parse_job
from app.outline import Outline, outline
from app.queues import GPU, choose
from app.strict import Strict, validate
from app.submission import check_device

router = APIRouter(prefix="/v1/estimates", tags=["jobs"])

BODY_BYTES = 20 << 20  # headers of many shards
_ANY_ID = "00000000-0000-0000-0000-000000000000"  # a job names its input by id; here there is none yet
_OWN = ("files", "config")
_CPU = {"cpu"}
_AT_ONCE = CapacityLimiter(2)  # they compute, and all requests of the process share its core


class EstimateFile(Strict):
    """A file of a model that is not uploaded. `size`: bytes. `header`: of a safetensors file, its JSON header as an object."""

    path: Annotated[str, Field(min_length=1, max_length=512)]
    size: Annotated[int, Field(ge=0, lt=1 << 53)]
    header: dict[str, Any] | None = None


class EstimateFiles(Strict):
    files: Annotated[list[EstimateFile], Field(min_length=1, max_length=10_000)]
    config: dict[str, Any] | None = None


class EstimateRequest(JobRequest):
    """The body of `POST /v1/jobs`, or the same with `files` (and the content of config.json as `config`) in the place of `input`."""

    input: str | None = None
    files: list[EstimateFile] | None = None
    config: dict[str, Any] | None = None


@router.post("", openapi_extra=body_schema(EstimateRequest))
async def make_estimate(
    request: Request, owner: ReadingOwner, customer_key: CustomerKeySent, tensors: Annotated[bool, Query(description="List every tensor: what happens to it, and its bytes.")] = False
) -> dict[str, Any]:
    """Bytes after, with bounds; memory, scratch disk and seconds; what loads the result. What a job would be refused for is refused here."""
    answer = await to_thread.run_sync(_estimate, await read_json(request, BODY_BYTES), owner, request, customer_key, limiter=_AT_ONCE)
    if not tensors:
        del answer["tensors"]
    return answer


@router.get("/rates")
def rates(owner: Owner) -> dict[str, Any]:
    """Bytes of input a second that this service's workers have managed on a CPU, by method; `prune+quantize` is one that does both."""
    with reading() as s:
        return {"bytes_per_second": meters.rates(s, "cpu")}


def _estimate(body: Any, owner: str, request: Request | None, customer_key: bytes | None = None) -> dict[str, Any]:
    if isinstance(body, dict) and "files" in body:
        if "input" in body:
            raise InvalidJobSpec("give either input or files", pointer="/files")
        model, spec = _described(body)
        rate = _rate(spec, _devices(spec))
        return estimate(model, spec, None, rate) | {"cache_hit": False}
    with reading() as s:
        source = find_input(s, body, owner)
        beside = find_companions(s, body, owner)
        ring = customer_keys.ring(s, customer_key, source.files)
    spec = parse_job(body, has_config(source), program=source.format == "pt2", kind=job_kind(source))
    if spec.kind != "model":
        raise NotEstimable(f"what a job on {spec.kind} gives is known once each of its trials is made; a sample of them tells", pointer="/input")
    devices = _devices(spec)
    storage = storage_of(request).of(owner).under(ring=ring)
    check_input(source, spec, storage)
    check_estimable(spec)
    if (model := outlined(source, storage)) is None:
        raise NotEstimable(f"what is in {source.format} is known once it is parsed; `modelpress estimate FILE` does that on your machine", pointer="/input")
    digests = {f.path: f.sha256 for f in source.files}
    key = cache_key(owner, source.digest, spec.model_dump(mode="json", exclude={"webhook"}), "cpu" if devices == _CPU else "cuda", {role: a.digest for role, a in beside.items()})
    with reading() as s:
        hit = customer_key is None and found(s, owner, key) is not None
    rate = _rate(spec, devices)
    return estimate(model, spec, lambda path, begin, end: storage.read(digests[path], begin, end), rate) | {"cache_hit": hit}


def _devices(spec: JobSpec) -> set[str]:
    """Those that may compute the job, as in `Job.device`.

    Raises:
        InvalidJobSpec: see `check_device`.
    """
    gpus = check_device(spec)
    return gpus if choose(spec.device, spec.recipe, 0, bool(gpus)) in GPU else _CPU


def _rate(spec: JobSpec, devices: set[str]) -> float | None:
    """What the slowest of them has managed, of those that have done such work."""
    method = meters.method(spec.recipe.model_dump(mode="json"))
    with reading() as s:
        return min((rate for d in devices if (rate := meters.rate(s, method, d))), default=None)


def _described(body: dict) -> tuple[Outline, JobSpec]:
    """The model that a body's `files` and `config` tell of, and the job.

    Raises:
        InvalidJobSpec, InvalidPath; what headers are refused for, pointing at them; NotEstimable.
    """
    given = validate(EstimateFiles, {k: body[k] for k in _OWN if k in body})
    paths = [f.path for f in given.files]
    check_paths(paths)
    asked = {k: v for k, v in body.items() if k not in _OWN}
    spec = parse_job({"input": _ANY_ID} | asked, has_config=given.config is not None and "config.json" in paths, complete=False, program=False)
    headers = {f.path: _header(f, f"/files/{i}/header") for i, f in enumerate(given.files) if f.header is not None}

    def read(path: str, most: int) -> bytes:
        return (_weight_map(path, headers) if path.endswith(".index.json") else json.dumps(given.config).encode())[:most]

    model = outline({f.path: f.size for f in given.files}, headers, read)
    if model is None:
        raise NotEstimable("no file has a header that tells its tensors: give that of the safetensors files as `header`", pointer="/files")
    return model, spec


def _weight_map(index: str, headers: dict[str, SafetensorsHeader]) -> bytes:
    """An index that agrees with the headers of the files beside it."""
    folder = index.rpartition("/")[0]
    beside = {p: h for p, h in headers.items() if p.rpartition("/")[0] == folder}
    return json.dumps({"weight_map": {name: p.rpartition("/")[2] for p, h in beside.items() for name in h.entries}}).encode()


def _header(file: EstimateFile, pointer: str) -> SafetensorsHeader:
    """The header by the one strict parser, as if it stood in a file of that size."""
    text = json.dumps(file.header, separators=(",", ":"), ensure_ascii=False).encode(errors="surrogatepass")
    ends = [e["data_offsets"][1] for e in file.header.values() if isinstance(e, dict) and _is_span(e.get("data_offsets"))]
    data = max(ends, default=0)
    length = file.size - 8 - data
    if not 2 <= length <= Limits().safetensors_header_bytes:
        why = f"{file.path} of {file.size} bytes leaves {length} for its header beside {data} bytes of tensors"
        raise InvalidJobSpec(why, pointer=pointer.replace("/header", "/size"))
    try:
        parsed = parse_safetensors_header(len(text).to_bytes(8, "little") + text, 8 + len(text) + data)
    except InputRefused as e:
        e.pointer = pointer
        raise
    return parsed._replace(data_start=file.size - data)


def _is_span(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(n) is int and n >= 0 for n in value)
