"""The life of signing keys in the folder of the sign process: the one that signs, one that will, and what was revoked.

    keys/signing.pem    signs
    keys/next.pem       is published already, and takes over at its `signs_from`: whoever fetches keys meanwhile has both before it signs anything
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from app.errors import Conflict, NotFound, Unavailable
from app.key_states import Known, change, load
from app.signing import PrivateKey, key_id, open_key, public_keys, read_private, write_private


def current(folder: Path) -> PrivateKey:
    """The key that signs now; a next one whose time has come has taken over.

    Raises:
        Unavailable: there is none (`app.signing.open_key`), or it was revoked.
    """
    waiting = folder / "next.pem"
    try:
        if waiting.exists() and (load(folder, key_id(read_private(waiting).public_key())).signs_from or 0) <= time.time():
            _take_over(folder)
    except FileNotFoundError:  # another process was faster
        pass
    key = open_key(folder)
    ident = key_id(key.public_key())
    state = load(folder, ident)
    if state.revoked_at is not None:
        raise Unavailable(f"the signing key {ident} was revoked: make a new one with `modelpress keys --rotate`")
    if state.signs_from is None:
        change(folder, ident, signs_from=time.time())
    return key


def rotate(folder: Path, overlap: float = 0.0) -> PrivateKey:
    """Make a new key, which is published at once and signs after `overlap` seconds; until then the old one does. Old public keys stay.

    Raises:
        Conflict: another one waits already, and this is to wait too.
    """
    waiting = folder / "next.pem"
    if overlap > 0 and (folder / "signing.pem").exists():
        if waiting.exists():
            raise Conflict(f"{waiting} waits already; `modelpress keys --rotate` without an overlap lets it sign at once")
        open_key(folder)  # writes its public key, should that be missing
        made = write_private(waiting, ec.generate_private_key(ec.SECP256R1()), folder)
        change(folder, key_id(made.public_key()), signs_from=time.time() + overlap)
        return made
    if not waiting.exists():
        write_private(waiting, ec.generate_private_key(ec.SECP256R1()), folder)
    _take_over(folder)
    return open_key(folder)


def revoke(folder: Path, ident: str, because: str) -> None:
    """Take back what a key has signed and will sign. When it is the one that signs, another takes its place at once.

    Raises:
        NotFound: the folder has no such key.
    """
    matching = [known for known in public_keys(folder) if known.startswith(ident)] if ident else []
    if len(matching) != 1:
        raise NotFound(f"{folder}/public has {len(matching)} keys whose id begins with {ident[:64]!r}; `modelpress keys` lists them")
    change(folder, matching[0], revoked_at=time.time(), revoked_because=because[:500])
    waiting, signing = folder / "next.pem", folder / "signing.pem"
    if waiting.exists() and key_id(read_private(waiting).public_key()) == matching[0]:
        waiting.unlink()
    if signing.exists() and key_id(read_private(signing).public_key()) == matching[0]:
        rotate(folder)


def known_keys(folder: Path) -> list[Known]:
    """All public keys of `folder`, the newest first."""
    return [Known(key, load(folder, ident)) for ident, key in public_keys(folder).items()]


def _take_over(folder: Path) -> None:
    at, old = time.time(), folder / "signing.pem"
    if old.exists():
        try:
            ident = key_id(open_key(folder).public_key())
        except Unavailable:  # whatever is wrong with it, it is replaced
            pass
        else:
            change(folder, ident, signs_until=at)
    change(folder, key_id(read_private(folder / "next.pem").public_key()), signs_from=at)
    os.replace(folder / "next.pem", old)
