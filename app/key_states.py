"""For how long each signing key is good, beside its public key in the folder of the sign process, and how anybody is told.

    keys/public/<key id>.json    {"signs_from": s, "signs_until": s | null, "revoked_at": s | null, "revoked_because": text | null}

    next ──(signs_from)──> current ──(the next one takes over)──> retired        signatures hold
      └───────────────────────┴───────────────────────────────────────┴──> revoked    none of its signatures holds

Nothing witnesses when a signature was made, and whoever has stolen a key can write any date: so a revocation takes back everything that the key signed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from app.errors import InvalidSignature, MalformedJson
from app.signing import PublicKey, jwks, key_id, parse_public, public_pem, write
from app.strict import parse_json
from app.times import rfc3339

NEXT, CURRENT, RETIRED, REVOKED = "next", "current", "retired", "revoked"


@dataclass(frozen=True)
class Validity:
    """Times are seconds since the epoch."""

    signs_from: float | None = None
    signs_until: float | None = None
    revoked_at: float | None = None
    revoked_because: str | None = None

    def status(self, at: float) -> str:
        if self.revoked_at is not None:
            return REVOKED
        if self.signs_from is not None and self.signs_from > at:
            return NEXT
        return RETIRED if self.signs_until is not None and self.signs_until <= at else CURRENT


@dataclass(frozen=True)
class Known:
    """A public key, and for how long it is good."""

    key: PublicKey
    validity: Validity = Validity()


def load(folder: Path, ident: str) -> Validity:
    """What is known of a key of `folder`; of one that is as old as the service, nothing."""
    path = folder / "public" / f"{ident}.json"
    return Validity(**json.loads(path.read_bytes())) if path.exists() else Validity()


def change(folder: Path, ident: str, **values: float | str | None) -> None:
    """Bring a key's state up to date; what was revoked stays revoked."""
    before = load(folder, ident)
    if before.revoked_at is not None:
        values = {name: v for name, v in values.items() if not name.startswith("revoked")}
    write(folder / "public" / f"{ident}.json", json.dumps(asdict(replace(before, **values))).encode(), 0o644)


def document(known: Iterable[Known], at: float | None = None) -> dict:
    """The answer of `GET /v1/keys`: a JSON Web Key Set whose keys also have `pem`, `status`, `valid_from`, `valid_until`, `revoked_at` and `reason`."""
    at = time.time() if at is None else at

    def told(k: Known) -> dict:
        v = k.validity
        times = {"valid_from": rfc3339(v.signs_from), "valid_until": rfc3339(v.signs_until), "revoked_at": rfc3339(v.revoked_at), "reason": v.revoked_because}
        return jwks([k.key])["keys"][0] | {"pem": public_pem(k.key).decode(), "status": v.status(at)} | times

    return {"keys": [told(k) for k in known]}


def parse_keys(data: bytes, where: str) -> tuple[list[PublicKey], dict[str, str]]:
    """Keys to verify with, and what is said of those that were revoked (by key id): of a PEM file, or of a saved answer of `GET /v1/keys`.

    Raises:
        InvalidSignature: it is neither.
    """
    if not data.lstrip().startswith(b"{"):
        return [parse_public(data, where)], {}
    keys, revoked = [], {}
    try:
        for entry in parse_json(data)["keys"]:
            keys.append(parse_public(entry["pem"].encode(), where))
            if entry.get("revoked_at"):
                revoked[key_id(keys[-1])] = _said(str(entry["revoked_at"]), entry.get("reason"))
    except (MalformedJson, KeyError, TypeError, AttributeError):
        raise InvalidSignature(f"{where} is neither a public key in PEM form nor an answer of GET /v1/keys") from None
    return keys, revoked


def revocations(known: Iterable[Known]) -> dict[str, str]:
    """Key id -> since when and why, of those that were revoked."""
    return {key_id(k.key): _said(rfc3339(k.validity.revoked_at), k.validity.revoked_because) for k in known if k.validity.revoked_at is not None}


def _said(at: str, because: object) -> str:
    return f"on {at[:40]}" + (f": {str(because)[:500]}" if because else "")
