"""Settings, read once from the environment (`MODELPRESS_*`)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Everything that an operator may set. Sizes are bytes, times are seconds."""

    model_config = SettingsConfigDict(env_prefix="MODELPRESS_", extra="ignore")

    home: Path = Path.home() / ".modelpress"
    host: str = "127.0.0.1"
    port: int = 8720
    api_grace: int = Field(3, ge=0)  # how long open requests have once the API is stopped

    public_url: str | None = None  # what links begin with; default: they are relative to the service
    database_url: str | None = None  # default: SQLite in the home folder
    broker_url: str | None = None  # set by `modelpress up` to its private Redis
    storage_url: str | None = None  # default: the home folder's `store`
    storage_public_endpoint: str | None = None  # the bucket's endpoint as clients reach it; default: as the service does
    presigned: bool = False  # whether clients may upload straight into the bucket
    redirect_downloads: bool = False  # whether they are sent there for files

    master_key_file: Path | None = None  # with lines ID:BASE64 of 32 bytes, the current key first: then what is stored is encrypted
    master_keys: SecretStr | None = None  # the same lines here, with ; between them

    age_identity_file: Path | None = None  # identities of age, to which clients encrypt uploads; default: `age-identity` in the home folder

    customer_key_file: Path | None = None  # for the client and the command line: a key of one's own, which goes with every request

    max_upload_bytes: int = 1 << 40
    max_json_bytes: int = 1 << 20
    upload_idle_timeout: float = 60.0
    upload_ttl: float = 24 * 3600.0  # how long an upload that is not whole waits for more
    upload_piece: int = 64 << 20  # of a resumable upload: how much a killed server may lose
    max_open_uploads: int = 100  # of one owner
    max_open_jobs: int = 10_000  # of one owner, not ended yet
    max_running_jobs: int | None = Field(None, ge=1)  # of one owner at a time; none: as many as there are workers
    max_stored_bytes: int | None = Field(None, ge=0)  # of one owner's artifacts; none: as much as there is room
    rate_limit: str = Field("1000/second;30000/minute", validate_default=False)  # requests of one owner, as `limits` writes it; empty: any number

    lease: float = 30.0
    heartbeat: float = 5.0
    poll: float = 0.5  # how often a worker looks whether its claim still holds, so that a cancel ends the child within 2 s
    sweep: float = 5.0
    rewake: float = 30.0
    cleaning: float = 60.0
    max_attempts: int = 3
    job_timeout: float = 6 * 3600.0
    wait_max: float = 60.0
    idempotency_age: float = 24 * 3600.0  # how long a request sent again gets the answer of the first
    orphan_age: float = 24 * 3600.0  # older than the longest upload
    scrub_rate: int = Field(8 << 20, ge=0)  # bytes a second that the scrubber reads; 0 switches it off
    scrub_period: float = Field(7 * 24 * 3600.0, gt=0)  # how often it reads each blob

    upload_artifact_ttl: float | None = None  # how long what was uploaded is kept; none: for ever
    result_ttl: float | None = None
    job_ttl: float | None = None  # after its end

    log_format: Literal["json", "text"] | None = None  # default: text on a terminal, else json
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_file: Path | None = None  # default: stderr

    metrics_token: str | None = None  # what `/metrics` asks for; without one it answers this machine alone
    webhook_timeout: float = 10.0  # of one attempt, all in all
    webhook_backoff: float = 1.0  # what the delays between attempts are multiplied by
    webhook_allow_private: bool = False  # whether webhooks may go to addresses that are not public

    queues: str = "compress.cpu,compress.cpu.large"  # those of this worker process
    large_memory: int = 4 << 30  # jobs that need more go to the queue for large ones
    workers: int = Field(1, ge=1)  # worker processes that `modelpress up` starts, beside one for each GPU
    gpu: Literal["auto", "off"] = "auto"  # whether `modelpress up` uses the GPUs that it finds
    child_memory: int = 16 << 30  # RLIMIT_AS of the child above what importing torch maps
    scratch_bytes: int = 1 << 40  # RLIMIT_FSIZE of the child
    jail: Literal["required", "best-effort"] = "required"  # whether a worker works where its jail does not hold
    threads: int | None = None  # torch threads of a child; default: all cores, which `modelpress up` shares out among its workers

    @model_validator(mode="after")
    def _bucket(self) -> Settings:
        if (self.presigned or self.redirect_downloads) and not self.store.startswith("s3://"):
            raise ValueError(f"MODELPRESS_PRESIGNED and MODELPRESS_REDIRECT_DOWNLOADS need MODELPRESS_STORAGE_URL=s3://BUCKET/PREFIX; it is {self.store}")
        if (self.presigned or self.redirect_downloads) and (self.master_key_file or self.master_keys):
            raise ValueError("MODELPRESS_PRESIGNED and MODELPRESS_REDIRECT_DOWNLOADS pass bytes by the service, which then cannot encrypt them: set neither of them with a master key")
        return self

    @field_validator("rate_limit")
    @classmethod
    def _rates(cls, text: str) -> str:
        from limits import parse_many  # takes longer to import than all else here, and only the API asks for rates

        try:
            parse_many(text) if text else None
        except ValueError:
            raise ValueError(f"MODELPRESS_RATE_LIMIT is {text!r}; write COUNT/second, COUNT/minute or COUNT/hour, several of them with ; between") from None
        return text

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.home / 'modelpress.db'}"

    @property
    def store(self) -> str:
        return self.storage_url or f"file://{self.home.resolve() / 'store'}"

    @property
    def scratch(self) -> Path:
        return self.home / "scratch"

    @property
    def age_identity(self) -> Path:
        """Read by the API alone."""
        return self.age_identity_file or self.home / "age-identity"

    @property
    def keys(self) -> Path:
        """`signing.pem` (0600, read by the sign process alone) and `public/<key id>.pem`."""
        return self.home / "keys"


@cache
def settings() -> Settings:
    return Settings()
