"""A worker's row in the registry, kept fresh from a thread of its own: the process is deaf while a job runs, and is there all the same."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from importlib.metadata import version

from app import workers
from app.recipients import Identity
from app.config import settings
from app.db import session
from app.models import Worker

log = logging.getLogger(__name__)


class Presence:
    """Registers at `start`, leaves at `stop`. `id` names this process: host, process id and a random part.

    Args:
        queues: those that it takes jobs of. device: cpu, or cuda and the GPU's name. jail: what `worker.jailed.probe` found.
    """

    def __init__(self, queues: tuple[str, ...], device: str, jail: dict):
        self.id, self.queues, self.device, self.jail = f"{socket.gethostname()[:60]}-{os.getpid()}-{secrets.token_hex(4)}", queues, device, jail
        self.identity = Identity(self.id, self.queues)
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._keep, name="presence", daemon=True)

    def start(self) -> None:
        self._tell()
        self.thread.start()

    def stop(self) -> None:
        self.ended.set()
        if self.thread.is_alive():
            self.thread.join()
        with session() as s, s.begin():
            workers.leave(s, self.id)
            self.identity.leave(s)

    def _row(self) -> Worker:
        threads = settings().threads or os.cpu_count() or 1
        has = {"memory": settings().child_memory, "threads": threads, "version": version("modelpress")}
        return Worker(id=self.id, queues=list(self.queues), device=self.device, jail=self.jail, **has)

    def _tell(self) -> None:
        """A database that is away for a while is told later: claims say nothing of this row."""
        try:
            with session() as s, s.begin():
                if not workers.seen(s, self.id):
                    workers.register(s, self._row())
                if self.queues:
                    self.identity.tell(s)
        except Exception as e:  # whatever the database raises
            log.warning("this worker could not be registered: %s", e)

    def _keep(self) -> None:
        while not self.ended.wait(settings().heartbeat):
            self._tell()
