"""Uploads that their sender has encrypted to this service (age-encryption.org/v1, X25519), decrypted while they arrive.

    age -r age1... -o model.safetensors.age model.safetensors

The service's identities stand in a file as `age-keygen` writes it, one `AGE-SECRET-KEY-1...` a line. The recipient of the first one is published, all of them decrypt.
age encrypts in chunks of 64 KiB whose last one is marked: what was changed, cut or goes on does not decrypt, and a file that breaks off is never taken for a whole one.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path

import pyrage
from anyio import CapacityLimiter, to_thread

from app.config import settings
from app.errors import ChecksumMismatch, InputRefused
from app.signing import write

ENDING = ".age"
MAGIC = b"age-encryption.org/v1\n"
_HEADER = 64 << 10  # bytes of a header at most; pyrage sets no limit
_BLOCK = 1 << 20  # bytes handed on at a time
_READ = 256 << 10  # bytes asked for at a time: each time the thread waits for the loop
_CHUNK, _TAG, _NONCE = 64 << 10, 16, 16
_THREADS = CapacityLimiter(64)  # of their own: each waits for its sender, and holds up nobody else's bytes
_HINT = "encrypt it with `age -r RECIPIENT -o X.age X`; GET /v1/keys has the recipient"


class Identities:
    """Args: keys: pyrage's, the current one first."""

    def __init__(self, keys: list):
        self.keys, self.recipient = keys, str(keys[0].to_public())

    @classmethod
    def read(cls, path: Path) -> Identities:
        """Raises:
        ValueError: others may read the file, or it is not one of identities. It does not tell what stands there.
        """
        if path.stat().st_mode & 0o077:
            raise ValueError(f"others may read {path}: chmod 600 it, and replace the identity if they may have")
        lines = [line.strip() for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
        try:
            keys = [pyrage.x25519.Identity.from_str(line) for line in lines]
        except pyrage.IdentityError:
            keys = []
        if not keys:
            raise ValueError(f"{path} is no file of age identities; `modelpress encryption new-identity` prints one")
        return cls(keys)

    @classmethod
    def configured(cls) -> Identities | None:
        """Those of the settings; None: there are none, and nothing can be encrypted for this service."""
        path = settings().age_identity
        return cls.read(path) if path.exists() or settings().age_identity_file is not None else None


def new_identity() -> str:
    """The text of an identity's file."""
    made = pyrage.x25519.Identity.generate()
    return f"# public key: {made.to_public()}\n{made}\n"


def ensure(path: Path) -> None:
    """Make an identity where there is none."""
    if not path.exists():
        write(path, new_identity().encode(), 0o600, exclusive=True)


class Encrypted:
    """A body that is encrypted. `begin`, then `plain`.

    Args:
        sha256: what the sender says that the encrypted bytes are.
    """

    def __init__(self, body: AsyncIterator[bytes], identities: Identities | None, sha256: str | None):
        if identities is None:
            raise InputRefused("wrong-recipient", "this service has no age identity, so nothing is encrypted for it; upload it as it is, or ask its operator for one")
        self._body, self._identities, self._sha256 = body, identities, sha256
        self._digest, self._held = hashlib.sha256(), b""
        self._ended, self._stopped = False, False
        self._broken: BaseException | None = None  # with what the body broke off
        self._asked: asyncio.Task | None = None
        self._done: asyncio.Queue[bytes] = asyncio.Queue(maxsize=2)

    async def begin(self, length: int | None) -> int | None:
        """Take the header. Returns how many plain bytes a body of `length` bytes has.

        Raises:
            InputRefused: it is none of age.
        """
        while (end := self._end()) is None:
            if len(self._held) > _HEADER:
                raise InputRefused("invalid-age", f"an age header has {_HEADER} bytes at most, and this one goes on; {_HINT}")
            if not (piece := await self._piece()):
                raise InputRefused("invalid-age", f"the file ends within its age header; {_HINT}")
            self._held += piece
        if length is None:
            return None
        sealed = length - end - _NONCE
        plain = sealed - _TAG * max(1, -(-sealed // (_CHUNK + _TAG)))
        if plain < 0:
            raise InputRefused("invalid-age", "the file ends after its age header")
        return plain

    def _end(self) -> int | None:
        """Where the header ends; None: not yet.

        Raises:
            InputRefused: this is no header.
        """
        if not self._held.startswith(MAGIC[: len(self._held)]):
            armored = self._held.startswith(b"-----BEGIN AGE"[: len(self._held)])
            raise InputRefused("invalid-age", f"the file is {'armored; send it in binary, without --armor' if armored else 'named .age, and is none of age'}; {_HINT}")
        at = self._held.find(b"\n--- ")
        end = self._held.find(b"\n", at + 1) if at >= 0 else -1
        return end + 1 if end >= 0 else None

    async def plain(self) -> AsyncIterator[bytes]:
        """The plain bytes, a megabyte at a time; the last ones only once all of it has proved to be whole. Close it (`aclosing`).

        Raises:
            InputRefused: encrypted for somebody else; damaged; it breaks off. ChecksumMismatch, and what the body raises.
        """
        self._loop = asyncio.get_running_loop()
        work = asyncio.create_task(to_thread.run_sync(self._decrypt, limiter=_THREADS))
        try:
            while True:
                got = asyncio.create_task(self._done.get())
                await asyncio.wait({got, work}, return_when=asyncio.FIRST_COMPLETED)
                if not got.done():
                    got.cancel()
                    break
                yield got.result()
            self._judge(work.exception())
            while not self._done.empty():
                yield self._done.get_nowait()
        finally:
            self._stopped = True
            if self._asked is not None:
                self._asked.cancel()
            await asyncio.wait({work})
            work.cancelled() or work.exception()

    def _judge(self, failure: BaseException | None) -> None:
        if self._broken is not None:
            raise self._broken
        if failure is None:
            if self._sha256 not in (None, found := self._digest.hexdigest()):
                raise ChecksumMismatch(f"encrypted bytes with SHA-256 {found} arrived, and {self._sha256} was announced")
            return
        if isinstance(failure, pyrage.DecryptError) and "matching keys" in str(failure):
            raise InputRefused("wrong-recipient", f"the file is encrypted for somebody else; this service is {self._identities.recipient}") from None
        if isinstance(failure, (pyrage.DecryptError, OSError)):
            raise InputRefused("invalid-age", f"the file was damaged or breaks off: {str(failure)[:100]}") from None
        raise failure

    async def _piece(self, least: int = 1) -> bytes:
        """The next bytes of the body, hashed, `least` of them while there are as many; none at its end."""
        taken = bytearray()
        while not self._ended and len(taken) < least:
            piece = await anext(self._body, None)
            self._ended = piece is None
            taken += piece or b""
        self._digest.update(taken)
        return bytes(taken)

    # What follows runs in a thread, and asks the loop for bytes.

    def _decrypt(self) -> None:
        writer = _Writer(self)
        pyrage.decrypt_io(self, writer, self._identities.keys)
        writer.finish()

    def _ask(self, what: Callable[[], Coroutine]) -> bytes | None:
        async def asked() -> bytes | None:
            self._asked = asyncio.current_task()
            if self._stopped:
                raise asyncio.CancelledError
            return await what()

        return asyncio.run_coroutine_threadsafe(asked(), self._loop).result()

    def hand_on(self, data: bytes) -> None:
        self._ask(lambda: self._done.put(data))

    def read(self, size: int = -1) -> bytes:
        if not self._held:
            try:
                self._held = memoryview(self._ask(lambda: self._piece(_READ)))
            except BaseException as e:
                self._broken = e
                raise OSError("the body broke off") from None
        size = len(self._held) if size < 0 else size
        out, self._held = self._held[:size], self._held[size:]
        return bytes(out)


class _Writer:
    def __init__(self, to: Encrypted):
        self._to, self._block = to, bytearray()

    def write(self, data: bytes) -> int:
        self._block += data
        if len(self._block) > _BLOCK:  # the last block stays here until the last chunk has been checked
            self._to.hand_on(bytes(self._block[:_BLOCK]))
            del self._block[:_BLOCK]
        return len(data)

    def flush(self) -> None: ...

    def finish(self) -> None:
        if self._block:
            self._to.hand_on(bytes(self._block))
