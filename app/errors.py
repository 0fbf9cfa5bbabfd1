"""The one exception tree. Each error knows its HTTP status and its stable problem type (RFC 9457).

    ModelpressError
    ├── MalformedRequest                 400  the bytes of the request are wrong
    │   └── MalformedJson, InvalidCursor, InvalidCustomerKey, CustomerKeyRequired, CustomerKeyNotApplicable
    ├── Unauthorized                     401
    ├── InvalidLink, InsufficientScope, WrongCustomerKey   403
    ├── NotFound                         404  unknown, or somebody else's
    ├── MethodNotAllowed                 405
    ├── RequestTimeout                   408
    ├── Conflict                         409
    │   ├── InUse, AlreadyFinished, InputNotUsable, OffsetMismatch
    ├── Quarantined                      410  its stored bytes are damaged
    ├── UnsupportedTusVersion            412
    ├── PayloadTooLarge                  413
    │   └── StorageQuotaExceeded
    ├── UriTooLong                       414
    ├── UnsupportedMediaType             415
    ├── RangeNotSatisfiable              416
    ├── Unprocessable                    422
    │   ├── InvalidJobSpec               ├── ConflictingSteps, InvalidPattern, WebhookNotAllowed
    │   ├── NoTensorMatched, NotEstimable
    │   ├── ChecksumMismatch, InvalidPath, IdempotencyKeyReused
    │   ├── InputRefused                 the file itself; `type` is one of REFUSALS
    │   └── InvalidSignature             └── KeyRevoked
    ├── JobFailure                       why a job ended `failed` without a refusal
    │   ├── GateFailed, BudgetNotMet, AccountingMismatch, LoadProofFailed, OutOfMemory, NoSpace, DeadlineExceeded, WorkerCrashed,
    │   │   Diverged, CustomerKeyGone
    ├── Locked                           423
    ├── QuotaExceeded, TooManyRequests   429
    │   └── TooManyJobs
    ├── HeadersTooLarge                  431
    ├── PieceMismatch                    460  tus: a part of an upload is not what its checksum says
    ├── StorageDamaged                   500  stored bytes are no longer what they were
    ├── Unavailable                      503  try again later
    │   └── EncryptionKeyMissing, NobodyForCustomerKey
    └── StorageFull                      507
"""

from __future__ import annotations

REFUSALS = {
    "unsupported-format": "The format is not one that this service reads",
    "invalid-safetensors": "Not a valid safetensors file",
    "invalid-torch": "Not a valid PyTorch checkpoint",
    "invalid-pickle": "The checkpoint's pickle is malformed",
    "unsafe-pickle": "The checkpoint's pickle holds code",
    "invalid-tensor": "A tensor's description does not fit its storage",
    "invalid-archive": "Not a valid archive",
    "unsafe-archive": "The archive has members that are not safe to extract",
    "invalid-pt2": "Not a valid program of torch.export",
    "unsafe-pt2": "The program holds what is not safe to load",
    "invalid-hf": "The folder's index and its shards do not agree",
    "invalid-packed": "Not a valid packed file",
    "invalid-onnx": "Not a valid ONNX model",
    "invalid-image": "Not a valid image",
    "invalid-numpy": "Not a valid numpy file",
    "invalid-table": "Not a valid parquet, arrow or csv file",
    "invalid-dataset": "Not a valid artifact of a data set",
    "not-quantizable": "Its numbers cannot be moved within a bound",
    "not-selectable": "Its rows cannot be chosen so",
    "format-not-allowed": "This kind of file is never loaded here",
    "kind-mismatch": "The content is not what the name says",
    "not-narrowable": "The feed-forward layers cannot be made narrower here",
    "lfs-pointer": "A git-lfs pointer stands where the file should be",
    "invalid-age": "Not a file of age, or a damaged one",
    "wrong-recipient": "The file is encrypted for somebody else",
    "bad-tensor-name": "A tensor's name is not safe to use",
    "no-tensors": "There is no tensor to compress",
    "missing-config": "The output needs a config.json beside the weights",
    "non-finite": "A tensor holds NaN or infinite values",
    "not-representable": "The output format cannot carry this result",
    "gradients-mismatch": "The gradients are not those of the model",
    "gradients-not-finite": "The gradients hold NaN or infinite values",
    "gradients-zero": "The gradients are zero",
    "not-runnable": "The model cannot be run here",
    "invalid-calibration": "The calibration data cannot be read",
    "calibration-mismatch": "The calibration data do not fit the model",
    "too-few-samples": "There are too few samples",
    "labels-mismatch": "The labels do not fit the calibration data or the model",
    "limit-depth": "Nested too deeply",
    "limit-entries": "Too many entries",
    "limit-expand": "Expands to too many bytes",
    "limit-header": "The header is too large",
    "limit-materialised": "The tensors take too many bytes once materialised",
    "limit-metadata": "The metadata is too large",
    "limit-name": "A name is too long",
    "limit-pixels": "Too many pixels",
}


class ModelpressError(Exception):
    """Any error that a user may see.

    Args:
        detail: one sentence that names the bad value and the valid choices.
        pointer: JSON pointer into the request's own body, e.g. `/recipe/steps/0/num_bits`.
        extra: further members of the problem document (`errors`, `choices`, ...).
    """

    status = 500
    type = "internal-error"
    title = "Something went wrong here"
    retry_after: int | None = None

    def __init__(self, detail: str, *, pointer: str | None = None, **extra):
        super().__init__(detail)
        self.detail, self.pointer, self.extra = detail, pointer, extra

    def problem(self) -> dict:
        """The `application/problem+json` document."""
        out = {"type": self.type, "title": self.title, "status": self.status, "detail": self.detail}
        return out | ({"pointer": self.pointer} if self.pointer is not None else {}) | self.extra


class MalformedRequest(ModelpressError):
    status, type, title = 400, "malformed-request", "The request is malformed"


class MalformedJson(MalformedRequest):
    type, title = "malformed-json", "The body is not JSON"


class InvalidCursor(MalformedRequest):
    type, title = "invalid-cursor", "The cursor is not one of this list"


class InvalidCustomerKey(MalformedRequest):
    type, title = "invalid-customer-key", "The customer's key is not one"


class CustomerKeyRequired(MalformedRequest):
    type, title = "customer-key-required", "It is stored under a key of its uploader's own, which was not sent"


class CustomerKeyNotApplicable(MalformedRequest):
    type, title = "customer-key-not-applicable", "It is not stored under a customer's key"


class Unauthorized(ModelpressError):
    status, type, title = 401, "unauthorized", "An API key is needed"


class InvalidLink(ModelpressError):
    status, type, title = 403, "invalid-link", "The link does not open this"


class InsufficientScope(ModelpressError):
    status, type, title = 403, "insufficient-scope", "The API key may not do this"


class WrongCustomerKey(ModelpressError):
    status, type, title = 403, "wrong-customer-key", "The customer's key is another one"


class NotFound(ModelpressError):
    status, type, title = 404, "not-found", "There is no such thing"


class MethodNotAllowed(ModelpressError):
    status, type, title = 405, "method-not-allowed", "The method is not allowed here"


class RequestTimeout(ModelpressError):
    status, type, title = 408, "request-timeout", "The request takes too long"


class Conflict(ModelpressError):
    status, type, title = 409, "conflict", "The state does not allow it"


class InUse(Conflict):
    type, title = "in-use", "Something still uses it"


class AlreadyFinished(Conflict):
    type, title = "already-finished", "The job has already ended"


class InputNotUsable(Conflict):
    type, title = "upload-not-usable", "The input cannot be used"


class OffsetMismatch(Conflict):
    type, title = "offset-mismatch", "The upload goes on at another offset"


class Quarantined(ModelpressError):
    status, type, title = 410, "quarantined", "Its stored bytes are damaged, and none of them is handed out"


class UnsupportedTusVersion(ModelpressError):
    status, type, title = 412, "unsupported-tus-version", "The version of tus is not supported"


class PayloadTooLarge(ModelpressError):
    status, type, title = 413, "payload-too-large", "The body is too large"


class StorageQuotaExceeded(PayloadTooLarge):
    type, title = "storage-quota-exceeded", "There is no room left for this owner"


class UriTooLong(ModelpressError):
    status, type, title = 414, "uri-too-long", "The address is too long"


class UnsupportedMediaType(ModelpressError):
    status, type, title = 415, "unsupported-media-type", "The media type is not supported"


class RangeNotSatisfiable(ModelpressError):
    status, type, title = 416, "range-not-satisfiable", "The range lies outside the file"


class Unprocessable(ModelpressError):
    status, type, title = 422, "unprocessable", "The request cannot be carried out"


class InvalidJobSpec(Unprocessable):
    type, title = "invalid-job-spec", "The job's specification is not valid"


class ConflictingSteps(InvalidJobSpec):
    type, title = "conflicting-steps", "Two steps contradict each other"


class InvalidPattern(InvalidJobSpec):
    type, title = "invalid-pattern", "A name pattern is not valid"


class WebhookNotAllowed(InvalidJobSpec):
    type, title = "webhook-not-allowed", "Webhooks are not sent to this address"


class NoTensorMatched(Unprocessable):
    type, title = "no-tensor-matched", "The recipe matches no tensor"


class NotEstimable(Unprocessable):
    type, title = "not-estimable", "It cannot be told beforehand"


class ChecksumMismatch(Unprocessable):
    type, title = "checksum-mismatch", "The bytes are not those that were announced"


class InvalidPath(Unprocessable):
    type, title = "invalid-path", "The path cannot be used"


class IdempotencyKeyReused(Unprocessable):
    type, title = "idempotency-key-reused", "The key belongs to another request"


class InvalidSignature(Unprocessable):
    type, title = "invalid-signature", "The signature does not hold"


class KeyRevoked(InvalidSignature):
    type, title = "key-revoked", "The key that signed it was revoked"


_BROUGHT = {
    "calibration-mismatch": "/calibration", "invalid-calibration": "/calibration", "too-few-samples": "/calibration", "labels-mismatch": "/labels",
    "gradients-mismatch": "/gradients", "gradients-not-finite": "/gradients", "gradients-zero": "/gradients",
}  # fmt: skip
"""Where a job names what is refused for these reasons: not its input, but what it brings beside it."""


class InputRefused(Unprocessable):
    """The file itself is refused; `reason`, one of REFUSALS, is the problem's type."""

    def __init__(self, reason: str, detail: str, *, pointer: str | None = None, **extra):
        self.type, self.title = reason, REFUSALS[reason]
        super().__init__(detail, pointer=pointer or _BROUGHT.get(reason), **extra)


class JobFailure(ModelpressError):
    type, title = "job-failed", "The job failed"


class GateFailed(JobFailure):
    status, type, title = 422, "gate-failed", "The result misses a gate of the job"


class BudgetNotMet(JobFailure):
    status, type, title = 422, "budget-not-met", "No recipe that was tried keeps to the budget"


class AccountingMismatch(JobFailure):
    type, title = "accounting-mismatch", "A tensor is missing from the result, or is not what the plan says"


class LoadProofFailed(JobFailure):
    type, title = "load-proof-failed", "The library that should read the result does not"


class OutOfMemory(JobFailure):
    status, type, title = 507, "out-of-memory", "The job needs more memory than it may use"


class NoSpace(JobFailure):
    status, type, title = 507, "no-space", "The worker's scratch disk is full"


class DeadlineExceeded(JobFailure):
    status, type, title = 504, "deadline-exceeded", "The job took longer than it may"


class WorkerCrashed(JobFailure):
    type, title = "worker-crashed", "The worker died on every attempt"


class Diverged(JobFailure):
    status, type, title = 422, "training-diverged", "Training has gone out of bounds"


class CustomerKeyGone(JobFailure):
    status, type, title = 503, "customer-key-gone", "Nobody has the customer's key any more; send the job again"


class Locked(ModelpressError):
    status, type, title, retry_after = 423, "locked", "Somebody else is writing to it", 1


class QuotaExceeded(ModelpressError):
    status, type, title, retry_after = 429, "quota-exceeded", "There are too many of them already", 60


class TooManyJobs(QuotaExceeded):
    type, title = "too-many-jobs", "Too many jobs have not ended yet"


class TooManyRequests(ModelpressError):
    status, type, title, retry_after = 429, "too-many-requests", "More requests than one owner may send", 1


class PieceMismatch(ModelpressError):
    status, type, title = 460, "piece-mismatch", "The bytes are not those of Upload-Checksum"


class HeadersTooLarge(ModelpressError):
    status, type, title = 431, "headers-too-large", "The headers are too large"


class StorageDamaged(ModelpressError):
    type, title = "storage-damaged", "Stored bytes are no longer what they were"


class WrongBytes(StorageDamaged):
    """They were read through, and their digest is another one."""


class Unavailable(ModelpressError):
    status, type, title, retry_after = 503, "unavailable", "The service is not available just now", 5


class EncryptionKeyMissing(Unavailable):
    type, title = "encryption-key-missing", "The key that the stored bytes are encrypted under is not at hand"


class NobodyForCustomerKey(Unavailable):
    type, title = "nobody-for-customer-key", "No worker is there to take the customer's key, and keys do not wait"


class StorageFull(ModelpressError):
    status, type, title, retry_after = 507, "storage-full", "The storage is full", 60


def error_of(problem: dict) -> ModelpressError:
    """The error that a problem document describes; one of a type unknown here is a plain ModelpressError."""
    extra = {k: v for k, v in problem.items() if k not in ("type", "title", "status", "detail", "pointer", "instance")}
    kind, detail = str(problem.get("type")), str(problem.get("detail") or problem.get("title"))
    if kind in REFUSALS:
        error = InputRefused(kind, detail, **extra)
    else:
        classes = [c for c in globals().values() if isinstance(c, type) and issubclass(c, ModelpressError) and c.type == kind]
        error = (classes or [ModelpressError])[0](detail, **extra)
    error.pointer = problem.get("pointer")
    error.type, error.title, error.status = kind, str(problem.get("title", error.title)), int(problem.get("status", error.status))
    return error
