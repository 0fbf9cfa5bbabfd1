"""One attempt at a job by one worker: fetch, run the child, store, hand over to be signed.

    scratch/<job>-<fence>/in/     the input, hashed as it was copied; the children read it
    scratch/<job>-<fence>/with/   the same of what the job brings beside it, by role
    scratch/<job>-<fence>/out/    the child that compresses writes here and nowhere else; others have folders of their own
    tmp/<job>/recovery/           in storage: what the next attempt goes on from
    tmp/<job>/<fence>/            in storage: what is handed to the sign process

Everything that the worker writes carries the fence, so that an attempt which lost its claim (a lease run out, a cancel) changes nothing.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from app import customer_keys, jobs, recipients, statistics
from app.blobs import keep, refer
from app.config import settings
from app.db import reading
from app.errors import CustomerKeyGone, DeadlineExceeded, ModelpressError, NoSpace, StorageDamaged, StorageFull, Unavailable, WrongBytes
from app.figures import figures
from app.logs import about
from app.memory import proof_wanted
from app.models import QUEUED, RUNNING, Artifact, Companion, Job
from app.quarantine import condemn
from app.recipients import Identity
from app.queue import flush_outbox
from app.queues import GPU
from app.recipe import Recipe, recipe_of
from app.settled import settled
from app.storage import Storage
from worker import child, kept_statistics, result
from worker.claim import Claim, Lost
from worker.snapshots import FOLDER, Snapshots
from worker.stages import Stages
from worker.zygote import Limits, Zygote, serving

log = logging.getLogger(__name__)


class Draining(Exception):
    """The worker is to stop: give the job back."""


class Crashed(Exception):
    """The child ended without a result."""


def _work(recipe: Recipe) -> tuple[str, str]:
    """The stage that makes the result, and the entry of its child."""
    if recipe.recovers:
        return "recover", "worker.recovering:child"
    if recipe.reconstructs:
        return "reconstruct", "worker.reconstructing:child"
    return "restore" if recipe.kind == "restore" else "compress", "worker.__main__:run"


class Attempt:
    """Args: zygotes: see `worker.zygote.serving`; kept between jobs. draining: whether the worker has been asked to stop. identity: with which it opens a
    customer's key that came with the job."""

    def __init__(self, job: Job, storage: Storage, zygotes: dict[tuple[str, ...], Zygote], draining: Callable[[], bool], identity: Identity | None = None):
        self.job, self.storage, self.zygotes, self.draining, self.identity = job, storage.of(job.owner), zygotes, draining, identity
        self.results, self.customer_key = self.storage, None  # both with the customer's key, once it is opened
        self.scratch = settings().scratch / f"{job.id}-{job.fence}"
        self.prefix = f"tmp/{job.id}/{job.fence}"
        self.spec: dict = job.spec  # with the recipe that a search has found
        self.stages = Stages()
        self.report: dict = {}  # the last one that was read
        self.snapshots: Snapshots | None = None  # of what takes long
        self.beside: dict[str, Path] = {}  # what the children may read beside their input, by role
        self.digests: dict[str, str] = {}  # of the artifacts among it
        self.started = time.time()
        self.deadline = time.monotonic() + settings().job_timeout

    def run(self) -> bool:
        """See `_run`; what is logged meanwhile says which job it is about."""
        with about(request=self.job.request_id, job_id=self.job.id, attempt=self.job.attempt):
            log.info("job %s begins", self.job.id)
            return self._run()

    def _run(self) -> bool:
        """To its end: handed over, failed, given back, or dropped because the claim is void. An unforeseen error leaves the job to its lease, which puts
        some time between the attempts.

        Returns:
            False when the store was away or full: the job was given back, and the next one would fare no better just now.
        """
        try:
            with Claim(self.job) as claim:
                try:
                    self._work(claim)
                except (Unavailable, StorageFull):  # that ends no job
                    raise
                except ModelpressError as e:
                    self._fail(e.problem())
                except OSError as e:
                    if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                        raise
                    self._fail(NoSpace("the worker's scratch disk is full").problem())
        except Lost:
            log.info("job %s: the claim is void, nothing was written", self.job.id)
        except Draining:
            self._requeue("the worker was stopped", spared="drain")
        except (Unavailable, StorageFull) as e:
            self._requeue(e.detail, spared="storage")
            return False
        except (Crashed, result.Unusable) as e:
            self._requeue(str(e))
        except Exception:
            log.exception("job %s: attempt %s broke off", self.job.id, self.job.attempt)
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)
            self._clear()
        return True

    def _clear(self) -> None:
        """Remove what was stored, unless the job refers to it. The database is asked: a commit may have happened though its answer was lost."""
        try:
            with reading() as s:
                job = s.get(Job, self.job.id)
            if job is None or (job.handoff or {}).get("prefix") != self.prefix:
                self.storage.delete_all(self.prefix)
            if self.snapshots and (job is None or job.state not in (QUEUED, RUNNING)):
                self.snapshots.drop()
        except Exception as e:  # the sweep removes what stays
            log.warning("job %s: what it stored stays for now: %s", self.job.id, e)

    def _work(self, claim: Claim) -> None:
        inp, out = self.scratch / "in", self.scratch / "out"
        for folder in (inp, out):
            folder.mkdir(parents=True)
        if self.job.customer_key is not None:
            self._open_key()
        source = self._fetch(inp, claim)
        recipe = recipe_of(self.job.spec)
        if (recipe.needs_gradients or (recipe.searches and "calibration" in self.beside)) and "gradients" not in self.beside:
            if problem := self._calibrate(inp, source, claim):
                return self._fail(problem)
        if recipe.searches:
            if problem := self._search(inp, source, claim):
                return self._fail(problem, self._kept_report(self.scratch / "search"))
            recipe = recipe_of(self.spec)
        if recipe.recovers or recipe.reconstructs or recipe.trains:
            self.snapshots = Snapshots(self.results, self.job.id, out, source.size)
            if found := self.snapshots.fetch(self.scratch / "with" / FOLDER):
                self.beside[FOLDER] = found
        if problem := self._stage(*_work(recipe), inp, out, claim):
            return self._fail(problem, self._kept_report(out))
        output = self.job.spec["output"]["format"]
        paths = result.files(out / "files")
        (out / "scratch").exists() and shutil.rmtree(out / "scratch")
        self.beside["original"] = inp
        for stage, entry, wanted in (
            ("measure", "worker.measuring:child", "calibration" in self.beside),
            ("prove", "worker.proof:prove", proof_wanted(output, paths)),
        ):
            if wanted:
                added = self.scratch / stage
                if problem := self._stage(stage, entry, out, added, claim):
                    return self._fail(problem, self._kept_report(added) or self._kept_report(out))
                (added / "report.json").replace(out / "report.json")
        self._hand_over(out / "files", paths, out / "report.json", source, output, claim)

    def _open_key(self) -> None:
        """Raises:
        CustomerKeyGone.
        """
        if self.identity is None:
            raise CustomerKeyGone(recipients.GONE)
        self.customer_key = self.identity.open(self.job)
        with reading() as s:
            self.results = self.storage.under(customer_keys.held(s, self.customer_key, self.job.customer_key))

    def _calibrate(self, inp: Path, source: Artifact, claim: Claim) -> dict | None:
        """Statistics of the gradients into `beside`: kept ones, or new ones, which then are."""
        found = self.scratch / "calibrated"
        found.mkdir()
        path = found / "statistics.safetensors"
        if self.customer_key is not None:  # what is found in the data is kept for nobody else, nor under another key
            self.beside["statistics"] = path
            return self._stage("calibrate", "worker.calibrating:child", inp, found, claim)
        key = statistics.key(self.job.owner, source.digest, self.digests, self.job.spec["seed"], "cuda" if self.job.queue in GPU else "cpu")
        if not kept_statistics.fetch(self.storage, key, path, self._advance(claim, "fetch", source.size)):
            if problem := self._stage("calibrate", "worker.calibrating:child", inp, found, claim):
                return problem
            kept_statistics.store(self.storage, key, self.job.owner, path, f"{self.prefix}/statistics", lambda nbytes: self._go_on(claim))
        self.beside["statistics"] = path
        return None

    def _search(self, inp: Path, source: Artifact, claim: Claim) -> dict | None:
        """The recipe that keeps to the job's budget into `spec`, and what the report is to say of the search. What it was reconstructed to is kept for the
        stage that carries it out."""
        found = self.scratch / "search"
        if problem := self._stage("search", "worker.searching:child", inp, found, claim):
            return problem
        self.spec = self.spec | result.searched(found / "search.json")
        Snapshots(self.storage, self.job.id, found, source.size).keep()
        shutil.rmtree(found)
        return None

    def _stage(self, stage: str, entry: str, inp: Path, out: Path, claim: Claim) -> dict | None:
        """One child's part of the work, in a folder of its own; its problem, or None when it is done."""
        out.mkdir(exist_ok=True)
        self.stages.enter(stage)
        return self._child(entry, inp, out, claim)

    def _fetch(self, inp: Path, claim: Claim) -> Artifact:
        """Copy the input and what goes with it, hashing what is copied.

        Raises:
            StorageDamaged: a blob is not what it was, or an artifact is gone.
        """
        source, beside = settled(self._artifacts, seconds=settings().lease)
        if source is None or None in beside.values():
            raise StorageDamaged("the job's input is gone")
        self.stages.input_bytes = source.size
        storage = self._reading(source, *beside.values())
        advance = self._advance(claim, "fetch", source.size + sum(a.size for a in beside.values()))
        self.beside = {role: self.scratch / "with" / role for role in beside}
        self.digests = {role: artifact.digest for role, artifact in beside.items()}
        for artifact, folder in ((source, inp), *((beside[role], self.beside[role]) for role in beside)):
            for f in artifact.files:
                path = folder / f.path
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    storage.get_file(f.sha256, path, advance)
                except WrongBytes:
                    condemn(storage, f.sha256, "some of its bytes are others")
                    raise
        return source

    def _reading(self, *artifacts: Artifact) -> Storage:
        """The store with what opens their files."""
        with reading() as s:
            return self.storage.under(ring=customer_keys.ring(s, self.customer_key, [f for a in artifacts for f in a.files]))

    def _artifacts(self, s: Session) -> tuple[Artifact | None, dict[str, Artifact | None]]:
        """The input, and what goes with it by role."""

        def get(ident: str | None) -> Artifact | None:
            return s.get(Artifact, ident) if ident else None

        rows = s.scalars(select(Companion).where(Companion.job_id == self.job.id).order_by(Companion.role)).all()
        return get(self.job.input_id), {row.role: get(row.artifact_id) for row in rows}

    def _advance(self, claim: Claim, stage: str, total: int) -> Callable[[int], None]:
        """What a copy calls with the bytes it has done: progress, and an end in the middle when it is to end."""
        self.stages.enter(stage, total)
        done = 0

        def advance(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            claim.progress = {"stage": stage, "fraction": min(1.0, done / max(1, total)), "bytes_done": done, "bytes_total": total}
            self._go_on(claim)

        return advance

    def _go_on(self, claim: Claim) -> None:
        claim.check()
        if self.draining():
            raise Draining

    def _child(self, entry: str, inp: Path, out: Path, claim: Claim) -> dict | None:
        """Run a child; its problem, or None when it is done."""
        spec = self.scratch / "spec.json"
        gpu = self.job.queue in GPU and entry != "worker.proof:prove"  # the proof is read, not computed
        beside = {role: str(path) for role, path in self.beside.items()}
        spec.write_text(json.dumps(self.spec | {"device": "cuda" if gpu else "cpu", "beside": beside}))
        threads, left = settings().threads or os.cpu_count() or 1, max(1, int(self.deadline - time.monotonic()) + 1)
        required = settings().jail == "required"
        limits = Limits(settings().child_memory, settings().scratch_bytes, threads, gpu, cpu=left * (threads + 1), required=required)

        def progress(p: dict) -> None:
            self.stages.told(p["stage"])
            claim.progress = p
            if self.snapshots:
                self.snapshots.keep()

        ended = child.run(
            serving(self.zygotes, entry), inp, out, spec, limits,
            stop=lambda: claim.lost.is_set() or self.draining(), seconds=self.deadline - time.monotonic(), progress=progress,
            read=self.beside.values(),
        )  # fmt: skip
        self.stages.memory = max(self.stages.memory, ended.memory)
        if self.snapshots and ended.how in ("crashed", "stopped"):
            self.snapshots.keep()
        self._go_on(claim)
        if ended.how == "deadline":
            return DeadlineExceeded(f"the job took longer than {settings().job_timeout:.0f} s").problem()
        if ended.how == "crashed":
            raise Crashed(ended.why)
        return ended.problem

    def _hand_over(self, files: Path, paths: list[str], report: Path, source: Artifact, output: str, claim: Claim) -> None:
        data, self.report = result.report(report)
        advance = self._advance(claim, "store", sum((files / p).stat().st_size for p in paths))
        rows = []
        for path in paths:
            size, sha256 = self.results.put_file(f"{self.prefix}/files/{path}", files / path, advance)
            rows.append({"path": path, "size": size, "sha256": sha256})
        size, sha256 = self.storage.put(f"{self.prefix}/report.json", [data], len(data))
        self.stages.leave()
        document = {
            "prefix": self.prefix,
            "files": rows,
            "report": {"path": "report.json", "size": size, "sha256": sha256},
            "format": output,
            "name": source.name,
            "environment": self.report["environment"],
            "figures": self._figures(),
            "started": self.started,
            "ended": time.time(),
        }

        def handoff(s: Session) -> bool | None:
            to = recipients.live(s, jobs.SIGN_QUEUE) if self.results.key else []
            if self.results.key and not to:
                raise Unavailable("no sign process runs that could take the customer's key")
            sealed = recipients.sealed(to, self.job.id, self.results.key.root) if to else None
            if not jobs.handoff(s, self.job.id, self.job.fence, document, sealed, to):
                return None
            self.stages.record(s, self.job)
            return True

        if not settled(handoff, lambda s: jobs.handed_over(s, self.job.id, self.prefix), settings().lease):
            raise Lost
        log.info("job %s is handed over to be signed", self.job.id)
        flush_outbox()

    def _kept_report(self, out: Path) -> str | None:
        """The report of a failed job as a blob (a failed gate shows its figures); None where there is none, or half a one."""
        try:
            data, self.report = result.report(out / "report.json")
        except result.Unusable:
            return None
        return keep(self.storage, data)

    def _figures(self) -> dict:
        return figures(self.report, self.stages.rounded(), self.stages.memory)

    def _fail(self, problem: dict, report: str | None = None) -> None:
        self.stages.leave()

        def fail(s: Session) -> None:
            if report is not None:
                refer(s, self.storage, {report: self.storage.stat(report).size})
            if jobs.fail(s, self.job.id, self.job.fence, problem, report_sha256=report, figures=self._figures()):
                self.stages.record(s, self.job)

        settled(fail, seconds=settings().lease)
        log.info("job %s failed: %s", self.job.id, problem["type"])
        flush_outbox()

    def _requeue(self, why: str, spared: str = "") -> None:
        log.warning("job %s, attempt %s: %s", self.job.id, self.job.attempt, why)
        back = {"why": why, "costs_attempt": not spared, "spared": spared}
        settled(lambda s: jobs.requeue(s, self.job.id, self.job.fence, **back), seconds=settings().lease)
        flush_outbox()
