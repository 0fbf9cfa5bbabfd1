"""The headers that bring an uploader's own key, as a dependency."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header

from app.customer_keys import ALGORITHM, NAME, SHA256, parse


def _sent(
    algorithm: Annotated[str | None, Header(alias=ALGORITHM, description="AES256, with a key of your own.")] = None,
    key: Annotated[str | None, Header(alias=NAME, description="32 random bytes in base64: what is uploaded or made is stored under them, and they are kept nowhere.")] = None,
    sha256: Annotated[str | None, Header(alias=SHA256, description="SHA-256 of the key, in base64.")] = None,
) -> bytes | None:
    return parse(algorithm, key, sha256)


CustomerKeySent = Annotated[bytes | None, Depends(_sent)]
"""The key that a request brings, or None."""
