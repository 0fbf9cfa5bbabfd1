"""Storage in a bucket of S3, or of a store that speaks its protocol. Endpoint, region and credentials come from the usual AWS_* variables."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from app.config import settings
from app.errors import StorageFull, Unavailable

if TYPE_CHECKING:
    from app.storage.s3_client import S3Client

log = logging.getLogger(__name__)
MAX_PARTS = 10_000
MIN_PART = 8 << 20  # bytes; S3 takes no less than 5 MiB
MAX_COPY = 5 << 30  # bytes that one CopyObject takes
_FULL = re.compile(r"\b507\b|StorageFull|InsufficientStorage|QuotaExceeded")  # MinIO, Ceph and others say it each in their way

# A store that is away is given up within half a minute; one that takes a request and is silent, once that has timed out.
# Plain HTTP is what an endpoint says that begins with http://.
_CLIENT = {"timeout": timedelta(seconds=60), "connect_timeout": timedelta(seconds=5), "allow_http": True}
_RETRY = {"max_retries": 6, "retry_timeout": timedelta(seconds=20), "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=4)}}


class Bucket:
    """Args: url: `s3://bucket/prefix`."""

    ahead = 7
    download = 4 << 20

    def __init__(self, url: str):
        self.store = S3Store.from_url(url, client_options=_CLIENT, retry_config=_RETRY)
        self.prompt = S3Store.from_url(url, client_options=_CLIENT | {"timeout": timedelta(seconds=3)}, retry_config={"max_retries": 0})

    @cached_property
    def client(self) -> S3Client:
        from app.storage.s3_client import S3Client  # botocore, which takes half a second and is needed by few

        return S3Client(self.store.config["bucket"], self.store.prefix or "")

    @cached_property
    def public(self) -> S3Client:
        """Signs URLs for whoever reaches the store by another name than this process does."""
        from app.storage.s3_client import S3Client

        return S3Client(self.store.config["bucket"], self.store.prefix or "", settings().storage_public_endpoint)

    def part(self, size: int) -> int:
        """Bytes of each part that an object of `size` bytes is written in: all but the last are equal, and there are MAX_PARTS at most."""
        return max(MIN_PART, -(-size // MAX_PARTS))

    @contextmanager
    def errors(self) -> Iterator[None]:
        """What obstore raises as what `app.storage` promises. An OSError without a number is obstore's, too."""
        try:
            yield
        except FileNotFoundError as e:
            if "NoSuchBucket" in str(e):
                raise _unavailable(e, "the storage has no such bucket") from e
            raise
        except (PermissionDeniedError, UnauthenticatedError) as e:
            raise _unavailable(e, "the storage does not accept the service's credentials") from e
        except (BaseError, OSError) as e:
            if not isinstance(e, BaseError) and not (type(e) is OSError and e.errno is None):
                raise
            if _FULL.search(str(e)):
                raise StorageFull("the storage has no room for it; delete what is not needed, or try again later") from e
            raise _unavailable(e, "the storage does not answer as it should; try again shortly") from e

    def move(self, key: str, to: str) -> None:
        """Within the store: no byte passes through here."""
        if (size := obstore.head(self.store, key)["size"]) <= MAX_COPY:
            obstore.copy(self.store, key, to)
        else:
            self.client.copy(key, to, size)
        obstore.delete(self.store, key)

    def delete(self, keys: list[str]) -> None:
        if keys:
            obstore.delete(self.store, keys)

    def drop_unfinished(self, age: float) -> int:
        """Abort the multipart uploads that a killed process began more than `age` seconds ago; returns how many."""
        return self.client.drop(age)


def _unavailable(error: Exception, detail: str) -> Unavailable:
    log.warning("storage: %s: %s", type(error).__name__, str(error).split("\n", 1)[0][:500])
    return Unavailable(detail)
