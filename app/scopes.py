"""What an API key may do. Each scope includes the one before it.

    read     see and download what its owner has
    write    upload, submit, cancel, delete, make links
    admin    the owner's API keys and audit log
"""

from __future__ import annotations

from typing import Literal

SCOPES = READ, WRITE, ADMIN = ("read", "write", "admin")
Scope = Literal["read", "write", "admin"]


def allows(scope: str, needed: str) -> bool:
    """Whether a key of `scope` may do what needs `needed`. One that this version does not know allows nothing."""
    return scope in SCOPES and SCOPES.index(scope) >= SCOPES.index(needed)
