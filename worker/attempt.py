"""One attempt at a job by one worker: fetch, run the child, store, hand over to be signed.

    scratch/<job>-<fence>/in/     the input, hashed as it was copied; the child reads it
    scratch/<job>-<fence>/out/    the child writes here and nowhere else
    tmp/<job>/<fence>/            in storage: what is handed to the sign process

Everything that the worker writes carries the fence, so that an attempt which lost its claim (a lease run out, a cancel) changes nothing.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

from app import jobs
from app.blobs import hold
from app.config import settings
from app.db import session
from app.errors import DeadlineExceeded, ModelpressError, NoSpace, StorageDamaged
from app.models import Artifact, Job
from app.queue import flush_outbox
from app.storage import Storage
from worker import child, proof
from worker.zygote import Limits, Zygote

log = logging.getLogger(__name__)
MAX_FILES, MAX_REPORT = 20_000, 256 << 20


class Lost(Exception):
    """The claim is void: write nothing more."""


class Draining(Exception):
    """The worker is to stop: give the job back."""


class Crashed(Exception):
    """The child ended without a result."""


class Claim:
    """Keeps a claim alive from a thread of its own, and knows when it is void."""

    def __init__(self, job: Job):
        self.job, self.progress = job, {"stage": "fetch", "fraction": 0.0, "bytes_done": 0, "bytes_total": 0}
        self.lost, self.ended = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._keep, name="claim", daemon=True)

    def __enter__(self) -> Claim:
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.ended.set()
        self.thread.join()

    def _keep(self) -> None:
        """Looks often whether the claim holds (a cancel must end the child soon), extends the lease now and then. A database that does not
        answer for a whole lease counts as a claim lost."""
        beat = answered = time.monotonic()
        told: dict = {}
        while not self.ended.wait(settings().poll) and not self.lost.is_set():
            try:
                with session() as s, s.begin():
                    if (late := time.monotonic() - beat >= settings().heartbeat) or self.progress != told:
                        told, good = dict(self.progress), jobs.heartbeat(s, self.job.id, self.job.fence, progress=self.progress)
                        beat = time.monotonic() if late else beat
                    else:
                        good = jobs.held(s, self.job.id, self.job.fence)
            except Exception as e:  # whatever the database raises: what counts is for how long
                log.warning("job %s: no heartbeat: %s", self.job.id, e)
                good = time.monotonic() - answered < settings().lease
            else:
                answered = time.monotonic()
            if not good:
                self.lost.set()

    def check(self) -> None:
        if self.lost.is_set():
            raise Lost


class Attempt:
    """Args: zygotes: entry -> its zygote, kept between jobs. draining: whether the worker has been asked to stop."""

    def __init__(self, job: Job, storage: Storage, zygotes: dict[str, Zygote], draining: Callable[[], bool]):
        self.job, self.storage, self.zygotes, self.draining = job, storage, zygotes, draining
        self.scratch = settings().scratch / f"{job.id}-{job.fence}"
        self.prefix = f"tmp/{job.id}/{job.fence}"
        self.started = time.time()
        self.deadline = time.monotonic() + settings().job_timeout

    def run(self) -> None:
        """To its end: handed over, failed, given back, or dropped because the claim is void."""
        kept = False
        try:
            with Claim(self.job) as claim:
                try:
                    kept = self._work(claim)
                except ModelpressError as e:
                    self._fail(e.problem())
                except OSError as e:
                    if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                        raise
                    self._fail(NoSpace("the worker's scratch disk is full").problem())
        except Lost:
            log.info("job %s: the claim is void, nothing was written", self.job.id)
        except Draining:
            self._requeue("the worker was stopped", costs_attempt=False)
        except Crashed as e:
            self._requeue(str(e))
        except Exception:
            log.exception("job %s: the attempt failed", self.job.id)
            self._requeue("of an error of the service")
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)
            if not kept:
                self.storage.delete_all(self.prefix)

    def _work(self, claim: Claim) -> bool:
        """Whether the result was handed over."""
        inp, out = self.scratch / "in", self.scratch / "out"
        for folder in (inp, out):
            folder.mkdir(parents=True)
        source = self._fetch(inp, claim)
        if problem := self._child("worker.__main__:run", inp, out, claim):
            self._fail(problem, self._kept_report(out))
            return False
        output = self.job.spec["output"]["format"]
        paths = sorted(p.relative_to(out / "files").as_posix() for p in regular_files(out / "files"))
        report = out / "report.json"
        if proof.wanted(output, paths):
            proven = self.scratch / "proof"
            proven.mkdir()
            (out / "scratch").exists() and shutil.rmtree(out / "scratch")
            if problem := self._child("worker.proof:prove", out, proven, claim):
                self._fail(problem, self._kept_report(out))
                return False
            report = proven / "report.json"
        return self._hand_over(out / "files", paths, report, source, output, claim)

    def _fetch(self, inp: Path, claim: Claim) -> Artifact:
        """Copy the input, hashing what is copied.

        Raises:
            StorageDamaged: a blob is not what it was.
        """
        with session() as s:
            source = s.get(Artifact, self.job.input_id) if self.job.input_id else None
        if source is None:
            raise StorageDamaged("the job's input is gone")
        done = 0
        for f in source.files:
            path = inp / f.path
            path.parent.mkdir(parents=True, exist_ok=True)
            self.storage.get_file(f.sha256, path)
            done += f.size
            claim.progress = {"stage": "fetch", "fraction": done / max(1, source.size), "bytes_done": done, "bytes_total": source.size}
            self._go_on(claim)
        return source

    def _go_on(self, claim: Claim) -> None:
        claim.check()
        if self.draining():
            raise Draining

    def _child(self, entry: str, inp: Path, out: Path, claim: Claim) -> dict | None:
        """Run a child; its problem, or None when it is done."""
        spec = self.scratch / "spec.json"
        spec.write_text(json.dumps(self.job.spec))
        limits = Limits(settings().child_memory, settings().scratch_bytes, settings().threads or os.cpu_count() or 1)

        def progress(p: dict) -> None:
            claim.progress = p

        ended = child.run(
            self.zygotes.setdefault(entry, Zygote(entry)), inp, out, spec, limits,
            stop=lambda: claim.lost.is_set() or self.draining(), seconds=self.deadline - time.monotonic(), progress=progress,
        )  # fmt: skip
        self._go_on(claim)
        if ended.how == "deadline":
            return DeadlineExceeded(f"the job took longer than {settings().job_timeout:.0f} s").problem()
        if ended.how == "crashed":
            raise Crashed(ended.why)
        return ended.problem

    def _hand_over(self, files: Path, paths: list[str], report: Path, source: Artifact, output: str, claim: Claim) -> bool:
        rows = []
        for path in paths:
            size, sha256 = self.storage.put_file(f"{self.prefix}/files/{path}", files / path)
            rows.append({"path": path, "size": size, "sha256": sha256})
            self._go_on(claim)
        size, sha256 = self.storage.put(f"{self.prefix}/report.json", [read_report(report)])
        document = {
            "prefix": self.prefix,
            "files": rows,
            "report": {"path": "report.json", "size": size, "sha256": sha256},
            "format": output,
            "name": source.name,
            "environment": json.loads(report.read_text())["environment"],
            "started": self.started,
            "ended": time.time(),
        }
        with session() as s, s.begin():
            if not jobs.handoff(s, self.job.id, self.job.fence, document):
                raise Lost
        flush_outbox()
        return True

    def _kept_report(self, out: Path) -> str | None:
        """The report of a failed job as a blob (a failed gate shows its figures)."""
        if not (out / "report.json").is_file():
            return None
        key = f"{self.prefix}/report.json"
        size, sha256 = self.storage.put(key, [read_report(out / "report.json")])
        with session() as s, s.begin():
            hold(s, sha256, size)
        self.storage.promote(key, sha256)
        return sha256

    def _fail(self, problem: dict, report: str | None = None) -> None:
        with session() as s, s.begin():
            jobs.fail(s, self.job.id, self.job.fence, problem, report_sha256=report)

    def _requeue(self, why: str, costs_attempt: bool = True) -> None:
        log.warning("job %s, attempt %s: %s", self.job.id, self.job.attempt, why)
        with session() as s, s.begin():
            jobs.requeue(s, self.job.id, self.job.fence, why=why, costs_attempt=costs_attempt)
        flush_outbox()


def regular_files(folder: Path) -> list[Path]:
    """What a child left behind. It cannot make links (its jail forbids it), and none is followed if it could.

    Raises:
        Crashed: anything but folders and regular files with one name, or too many of them.
    """
    found = []
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(parent, name)
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                found.append(path)
            elif not stat.S_ISDIR(status.st_mode):
                raise Crashed(f"it left {name[:100]!r}, which is no regular file")
            if len(found) > MAX_FILES:
                raise Crashed(f"it left more than {MAX_FILES} files")
    return found


def read_report(path: Path) -> bytes:
    """Raises:
    Crashed: no report, or one that is too large or no JSON object.
    """
    try:
        if path.is_symlink() or path.stat().st_size > MAX_REPORT:
            raise ValueError(f"larger than {MAX_REPORT} bytes")
        data = path.read_bytes()
        if not isinstance(json.loads(data), dict):
            raise ValueError("no object")
        return data
    except (OSError, ValueError, RecursionError) as e:
        raise Crashed(f"its report is not usable: {e}") from None
