"""A job from its body to its row: checked first, as far as it can be before any work starts, then inserted in the caller's transaction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from app import customer_keys, jobs, quotas, recipients, workers
from app.cache import cache_key, earlier
from app.db import reading
from app.errors import InvalidJobSpec, NobodyForCustomerKey
from app.inputs import check_input, expected_peak, find_companions, find_input, has_config, job_kind
from app.job_spec import JobSpec, parse_job
from app.models import Artifact, Companion, Job
from app.queues import GPU, choose
from app.storage import Storage


@dataclass(frozen=True)
class Submission:
    """A job that may be inserted. `document`: its resolved spec as JSON; `key`: of the result cache, None where the job takes no part in it; `memory`: bytes that its child
    takes at most; `customer_key`: under which the result is to be stored, and what of the input is."""

    owner: str
    body: dict[str, Any]
    source: Artifact
    spec: JobSpec
    document: dict[str, Any]
    queue: str
    key: str | None
    memory: int
    customer_key: bytes | None = field(default=None, repr=False)

    def insert(self, s: Session, ident: str, comparison_id: str | None = None) -> Job:
        """Raises:
        NotFound: what it names was deleted meanwhile. TooManyJobs, StorageQuotaExceeded. NobodyForCustomerKey: no worker runs that could take the key now.
        """
        quotas.check_room(s, self.owner, beside_uploads=False)
        find_input(s, self.body, self.owner, lock=True)
        locked = find_companions(s, self.body, self.owner, lock=True)
        handoff = earlier(s, self.owner, self.key) if self.key else None
        handoff = handoff and handoff | {"name": self.source.name}
        job = jobs.submit(
            s, owner=self.owner, input_id=self.source.id, spec=self.document, queue=self.queue, cache_key=self.key, handoff=handoff,
            webhook=self.spec.webhook and self.spec.webhook.model_dump(), memory=self.memory, input_bytes=self.source.size, ident=ident,
            companions=[Companion(role=role, artifact_id=a.id, digest=a.digest) for role, a in locked.items()], comparison_id=comparison_id,
        )  # fmt: skip
        if self.customer_key is not None:
            self._entrust(s, job)
        return job

    def _entrust(self, s: Session, job: Job) -> None:
        """The key to the workers that run now; what the result is to be stored under."""
        if not (to := recipients.live(s, self.queue)):
            raise NobodyForCustomerKey("a customer's key is handed to a worker that runs, and none does just now; send the job again shortly")
        made = customer_keys.CustomerKey.new(self.customer_key)
        s.add(customer_keys.row(made))
        job.customer_key, job.sealed_key = made.ident, recipients.sealed(to, job.id, self.customer_key)
        recipients.address(s, job.id, to)


def prepare(body: Any, owner: str, storage: Storage, customer_key: bytes | None = None) -> Submission:
    """Hold the body of `POST /v1/jobs` against itself, its input and the workers that there are.

    Raises:
        what `find_input`, `find_companions`, `parse_job`, `check_device` and `check_input` raise. CustomerKeyRequired, WrongCustomerKey.
    """
    with reading() as s:
        source = find_input(s, body, owner)
        beside = find_companions(s, body, owner)
        ring = customer_keys.ring(s, customer_key, [f for a in (source, *beside.values()) for f in a.files])
    spec = parse_job(body, has_config(source), program=source.format == "pt2", kind=job_kind(source))
    gpus = check_device(spec)
    treatments = check_input(source, spec, storage.of(owner).under(ring=ring))
    memory = expected_peak(source, spec, treatments)
    document = spec.model_dump(mode="json", exclude={"webhook"})
    queue = choose(spec.device, spec.recipe, memory, bool(gpus))
    digests = {role: a.digest for role, a in beside.items()}
    # all methods so far are to give the same bits on any device, but no test has shown it on a GPU: until then neither answers for the other
    key = None if customer_key is not None else cache_key(owner, source.digest, document, "cuda" if queue in GPU else "cpu", digests)
    return Submission(owner, body, source, spec, document, queue, key, memory, customer_key)


def check_device(spec: JobSpec) -> set[str]:
    """The GPUs that workers have, as in `Job.device`.

    Raises:
        InvalidJobSpec: the job needs one and there is none.
    """
    with reading() as s:
        gpus = {w.device for w in workers.serving(s, GPU)}
    if spec.device == "cuda" and not gpus:
        raise InvalidJobSpec("no worker of this service has a GPU; choose auto or cpu", pointer="/device")
    return gpus
