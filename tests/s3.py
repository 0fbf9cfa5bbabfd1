"""A store that speaks S3, as a process of its own (moto's server), and a proxy before it that fails as networks and stores do."""

from __future__ import annotations

import atexit
import os
import socket
import socketserver
import subprocess
import sys
import threading
import time
import uuid
from functools import cache

import botocore.session
import httpx
from botocore.config import Config

from app.parent import tied


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(endpoint: str) -> dict[str, str]:
    """The AWS_* variables that a process needs to find it."""
    keys = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    return keys | {"AWS_ENDPOINT_URL": endpoint}


class S3:
    """A running store. `client` is botocore's, for what tests want to see from outside."""

    def __init__(self, port: int):
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=tied())
        for _ in range(600):
            try:
                httpx.get(f"{self.url}/moto-api/")
                break
            except httpx.TransportError:
                time.sleep(0.05)
        self.environment = environment(self.url)
        self.client = botocore.session.get_session().create_client(
            "s3", region_name="us-east-1", endpoint_url=self.url, aws_access_key_id="tester", aws_secret_access_key="secret",
            config=Config(s3={"addressing_style": "path"}),
        )  # fmt: skip

    def bucket(self) -> str:
        """A new one; its name."""
        name = f"bucket-{uuid.uuid4()}"
        self.client.create_bucket(Bucket=name)
        return name

    def objects(self, bucket: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return sorted(o["Key"] for page in pages for o in page.get("Contents", []))

    def unfinished(self, bucket: str) -> list[str]:
        """Multipart uploads that are neither complete nor aborted."""
        return sorted(u["Key"] for u in self.client.list_multipart_uploads(Bucket=bucket).get("Uploads", []))

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@cache
def server() -> S3:
    """One for all tests of this process, started when it is first needed; the processes that they start find it by the AWS_* variables."""
    made = S3(free_port())
    atexit.register(made.stop)
    os.environ.update(made.environment)
    return made


class Proxy(socketserver.ThreadingTCPServer):
    """Passes connections on to `port`. With `cuts`, as many answers are cut off after `after` bytes; what comes while `silent` is
    never passed on; while `down`, requests end the connection.

    `sent` counts the bytes of all answers.
    """

    allow_reuse_address = daemon_threads = True

    def __init__(self, port: int):
        self.target, self.cuts, self.after, self.silent, self.down, self.sent = port, 0, 0, False, False, 0
        super().__init__(("127.0.0.1", 0), _Passing)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()


class _Passing(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.target)) as other:
            back = threading.Thread(target=self._answers, args=[other], daemon=True)
            back.start()
            try:
                while (data := self.request.recv(1 << 16)) and not self.server.down:
                    if self.server.silent:
                        while self.server.silent:
                            time.sleep(0.05)
                        return
                    other.sendall(data)
            except OSError:
                pass
            back.join(0.1)

    def _answers(self, other: socket.socket) -> None:
        passed = 0
        try:
            while data := other.recv(1 << 16):
                if self.server.cuts and passed + len(data) > self.server.after:
                    self.server.cuts -= 1
                    self.request.shutdown(socket.SHUT_RDWR)
                    return
                passed += len(data)
                self.server.sent += len(data)
                self.request.sendall(data)
        except OSError:
            pass
