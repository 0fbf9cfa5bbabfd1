"""What obstore does not do with S3: multipart uploads whose parts come from elsewhere, signed URLs with conditions.

The client is botocore's, made when it is first needed. Endpoint, region and credentials come from the variables that obstore reads.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from app.errors import Unavailable

COPY_PART = 1 << 30  # bytes; 5 GiB is the most
COPIES = 8  # parts copied at once


class S3Client:
    """Args: prefix: of every key. endpoint: instead of the configured one."""

    def __init__(self, bucket: str, prefix: str, endpoint: str | None = None):
        self.bucket, self.prefix = bucket, prefix.strip("/")
        self.client = botocore.session.get_session().create_client(
            "s3",
            region_name=_variable("AWS_REGION", "AWS_DEFAULT_REGION") or "us-east-1",
            endpoint_url=endpoint or _variable("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "virtual" if _variable("AWS_VIRTUAL_HOSTED_STYLE_REQUEST") == "true" else "path"},
                connect_timeout=5,
                read_timeout=60,
                retries={"mode": "standard", "total_max_attempts": 4},
                request_checksum_calculation="when_required",
            ),
        )

    def where(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": f"{self.prefix}/{key}".lstrip("/")}

    def url(self, key: str, seconds: float, **response: str) -> str:
        """Where whoever has it may get an object, for so long. `response`: headers of the answer, as S3 names them (`ResponseContentType`, ...)."""
        return self.client.generate_presigned_url("get_object", Params=self.where(key) | response, ExpiresIn=int(seconds))

    def create(self, key: str) -> str:
        """Begin an upload; returns its id."""
        with _errors():
            return self.client.create_multipart_upload(**self.where(key))["UploadId"]

    def part_url(self, key: str, upload: str, number: int, length: int, seconds: float) -> str:
        """Where whoever has it may PUT one part of exactly `length` bytes, for so long, until the upload is complete."""
        asked = self.where(key) | {"UploadId": upload, "PartNumber": number, "ContentLength": length}
        return self.client.generate_presigned_url("upload_part", Params=asked, ExpiresIn=int(seconds))

    def parts(self, key: str, upload: str) -> list[dict]:
        """Those that are there: PartNumber, Size, ETag. Raises FileNotFoundError: the upload is not, any more."""
        with _errors():
            try:
                pages = self.client.get_paginator("list_parts").paginate(**self.where(key), UploadId=upload)
                return [part for page in pages for part in page.get("Parts", [])]
            except self.client.exceptions.NoSuchUpload as e:
                raise FileNotFoundError(str(e)) from e

    def complete(self, key: str, upload: str, parts: list[dict]) -> None:
        with _errors():
            self.client.complete_multipart_upload(**self.where(key), UploadId=upload, MultipartUpload={"Parts": parts})

    def abort(self, key: str, upload: str) -> None:
        """Nothing happens when it is gone already."""
        with _errors():
            try:
                self.client.abort_multipart_upload(**self.where(key), UploadId=upload)
            except self.client.exceptions.NoSuchUpload:
                pass

    def copy(self, key: str, to: str, size: int) -> None:
        """An object of any size, within the store."""
        upload = self.create(to)
        try:
            source = self.where(key)

            def one(number: int) -> dict:
                first = (number - 1) * COPY_PART
                asked = f"bytes={first}-{min(first + COPY_PART, size) - 1}"
                made = self.client.upload_part_copy(**self.where(to), UploadId=upload, PartNumber=number, CopySource=source, CopySourceRange=asked)
                return {"PartNumber": number, "ETag": made["CopyPartResult"]["ETag"]}

            with _errors(), ThreadPoolExecutor(COPIES) as pool:
                parts = list(pool.map(one, range(1, -(-size // COPY_PART) + 1)))
            self.complete(to, upload, parts)
        except BaseException:
            self.abort(to, upload)
            raise

    def drop(self, age: float) -> int:
        """Abort every upload below the prefix that was begun more than `age` seconds ago; returns how many."""
        with _errors():
            pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=self.prefix and self.prefix + "/")
            old = [u for page in pages for u in page.get("Uploads", []) if u["Initiated"].timestamp() < time.time() - age]
        for u in old:
            self.abort(u["Key"].removeprefix(f"{self.prefix}/") if self.prefix else u["Key"], u["UploadId"])
        return len(old)


def _variable(*names: str) -> str | None:
    """The first that is set."""
    return next((value for name in names if (value := os.environ.get(name))), None)


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except (ClientError, BotoCoreError) as e:
        raise Unavailable(f"the storage does not answer as it should ({type(e).__name__}); try again shortly") from e
