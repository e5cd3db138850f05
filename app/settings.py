"""Every MEMBANK_ variable, typed, in one place. `.env.example` lists them with their defaults."""

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.errors import UsageError

LEAST_AUDIT = 30
"""Days that the database keeps events of the audit log at least."""


class Settings(BaseSettings):
    """Values from the environment, then from `.env` in the working directory, then the defaults.

    An empty value is none: Compose and other tools hand on what is not set as an empty text.
    """

    model_config = SettingsConfigDict(
        env_prefix="MEMBANK_", env_file=".env", env_ignore_empty=True, extra="ignore"
    )

    home: Path = Field(
        Path(".membank"),
        description="Folder of the local stack's state: data, logs and process records.",
    )
    models: Path = Field(
        Path("~/.cache/membank/models"),
        description="Folder of the converted default models, shared by all of this user's homes.",
    )
    database_url: str | None = Field(
        None,
        description="Postgres to use instead of the embedded one. If it logs in as membank_app it"
        " is used as it is; any other user is taken for an administrator, with whom"
        " `membank up` sets up roles and schema.",
    )
    owner_database_url: str | None = Field(
        None,
        description="Address for the role membank_owner, which migrates. Derived from"
        " MEMBANK_DATABASE_URL if unset.",
    )
    app_database_url: str | None = Field(
        None,
        description="Address for the role membank_app, which answers questions. Derived from"
        " MEMBANK_DATABASE_URL if unset.",
    )
    worker_database_url: str | None = Field(
        None,
        description="Address for the role membank_worker, which ingests and encodes. Derived from"
        " MEMBANK_DATABASE_URL if unset.",
    )
    admin_database_url: str | None = Field(
        None,
        description="Address for the role membank_admin, for people with psql. Derived from"
        " MEMBANK_DATABASE_URL if unset.",
    )
    context_key: SecretStr | None = Field(
        None,
        description="Secret that signs who is asking: at least 32 characters, the same in all"
        " processes. If unset, the file context.key in MEMBANK_HOME holds it.",
    )
    redis_url: str | None = Field(
        None, description="Redis or Valkey to use instead of the embedded one."
    )
    oidc_issuer: str | None = Field(
        None,
        description="OpenID Connect issuer whose tokens are accepted besides API keys, as its"
        " tokens name it in iss.",
    )
    oidc_audience: str | None = Field(
        None, description="The aud claim of tokens for this service; required with an issuer."
    )
    oidc_keys: str | None = Field(
        None,
        description="The issuer's public keys (JWK set): a file or an https address. If unset,"
        " the one that the issuer's discovery document names.",
    )
    oidc_tenant_claim: str = Field(
        "tenant", description="Claim of a token that holds the tenant's name."
    )
    oidc_principal_claim: str = Field(
        "sub", description="Claim of a token that holds the principal's name."
    )
    master_key: SecretStr | None = Field(
        None,
        description="Key that wraps the tenants' data keys: 32 bytes in base64. If this, a key"
        " file or a KMS is set, memories are encrypted.",
    )
    master_key_file: Path | None = Field(
        None, description="File that holds the master key instead, readable only by its owner."
    )
    master_kms: str | None = Field(
        None,
        description="Function, as MODULE:FUNCTION, that returns a client of a key management"
        " service to use instead of a master key (app.vault.masters.Master).",
    )
    old_master_key_file: Path | None = Field(
        None,
        description="File of the previous master key, needed until `membank vault rewrap` has run.",
    )
    keyring: Path | None = Field(
        None,
        description="Folder of the wrapped data keys, the same for all processes and in no"
        " database backup. If unset, keyring in MEMBANK_HOME.",
    )
    blob_store: str | None = Field(
        None,
        description="Object store for new memories: a folder that all processes share, or"
        " s3://BUCKET/PREFIX. If unset, they are stored in Postgres.",
    )
    old_blob_store: str | None = Field(
        None,
        description="Object store that was set before, read until `membank store move` has"
        " emptied it.",
    )
    cache_bytes: int = Field(
        500_000_000,
        ge=0,
        description="Bytes of decoded memories that each process keeps; 0 turns this cache off.",
    )
    cache_disk_bytes: int = Field(
        2_000_000_000,
        ge=0,
        description="Bytes of memories, as stored, that are kept in the cache folder; 0 turns"
        " this cache off.",
    )
    cache_folder: Path | None = Field(
        None, description="Local folder for that cache. If unset, cache in MEMBANK_HOME."
    )
    audit_days: int = Field(
        0,
        ge=0,
        description="Days after which the relay deletes audit events, at least 30; 0 keeps them"
        " forever.",
    )
    model: str = Field(
        "smollm2-135m-instruct",
        description="Language model: the packaged default, a folder, or a hub name.",
    )
    embedder: str = Field(
        "all-minilm-l6-v2",
        description="Embedding model: the packaged default, a folder, or a hub name.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the models run.")
    codec: str = Field(
        "auto",
        description="How memories are compressed: auto (the codebook fitted to the model, or else"
        " rotated4), int8, rotated4, or the path of a codebook.",
    )
    compaction: str = Field(
        "all",
        description="What is kept of each memory: all, or parts joined by + out of"
        " layers:FIRST-LAST, SCORER:SHARE[:FLOOR] and match, such as"
        " reconstruction:0.5+match.",
    )
    adapter: str = Field(
        "auto",
        description="Reader adapter: auto (the one shipped for the model, if any), none, or the"
        " --out folder of `membank train`.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Type of weights and memories; auto is bfloat16 where the hardware computes"
        " in it, else float32.",
    )
    weights: Literal["auto", "float", "int8", "int4"] = Field(
        "auto",
        description="Weights that answers are computed with: float (as loaded), int8 or int4"
        " (rounded, which the CPU reads faster and which needs a C compiler), or auto"
        " (rounded where possible, to 4 bits only where that loses no more than 8"
        " bits).",
    )
    threads: int = Field(
        0,
        ge=0,
        description="Threads that compute, per process; 0: as many as there are cores, and no more"
        " than a container's CPU quota pays for.",
    )
    top_k: int = Field(1, ge=1, le=100, description="Memories per question if -k is not given.")
    min_score: float = Field(
        0.4,
        ge=-1,
        le=1,
        description="Cosine below which a memory is not used as a source of an answer.",
    )
    max_document_bytes: int = Field(
        20_000_000,
        ge=1,
        description="Documents with more bytes of UTF-8 text than this are refused.",
    )
    max_upload_bytes: int = Field(
        50_000_000,
        ge=1,
        description="Files with more bytes than this are refused by the HTTP service.",
    )
    adapters: Path | None = Field(
        None,
        description="Folder of `membank train --out` folders, whose adapters the HTTP service"
        " uses for requests that name a model BANK@NAME.",
    )
    requests_at_once: int = Field(
        256,
        ge=1,
        le=10_000,
        description="Most answers that the HTTP service works on at a time; a single tenant gets"
        " at most half of them.",
    )
    max_batch: int = Field(
        32,
        ge=1,
        le=256,
        description="Most answers that the HTTP service computes at a time; further ones wait for"
        " their turn.",
    )
    request_seconds: float = Field(
        120, gt=0, description="Seconds after which the HTTP service gives up on an answer."
    )
    rate_per_minute: int = Field(
        0,
        ge=0,
        description="Requests per minute that the HTTP service accepts from a tenant, over all of"
        " its processes; 0 is unlimited.",
    )
    max_request_bytes: int = Field(
        2_000_000,
        ge=1,
        description="Most bytes of a request to the HTTP service, except file uploads.",
    )
    batch_tokens: int = Field(
        2048, ge=128, description="Tokens that a worker encodes per model call."
    )
    lease_seconds: int = Field(
        30,
        ge=2,
        description="Seconds after which the work of a worker that has gone silent becomes free"
        " again.",
    )
    max_attempts: int = Field(
        5, ge=1, description="Failures of a chunk after which it goes to dead_letter."
    )
    poll_seconds: float = Field(
        0.5, gt=0, description="Seconds between the relay's looks for work."
    )
    reconcile_seconds: float = Field(
        300,
        gt=0,
        description="Seconds between the relay's searches for changes that triggers missed.",
    )
    hnsw_from: int = Field(
        20_000,
        ge=100,
        description="Number of memories from which a bank gets a vector index; smaller banks are"
        " searched exactly.",
    )
    maintain_seconds: float = Field(
        300,
        gt=0,
        description="Seconds between the relay's searches for banks that need an index, or no"
        " longer need one.",
    )
    api_host: str = Field("127.0.0.1", description="Address that the HTTP service listens on.")
    api_port: int = Field(
        0,
        ge=0,
        le=65_535,
        description="Port that the HTTP service listens on; 0 is the port that this home used"
        " before, or else the first free one from 8000.",
    )
    api_admin: bool | None = Field(
        None,
        description="Whether the HTTP service offers administration, for which it logs in as"
        " membank_admin. If unset, it does where that role's address is known.",
    )
    api_stale_seconds: float = Field(
        600,
        gt=0,
        description="Age of the oldest due work at which the HTTP service reports that it is not"
        " ready.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO",
        description="Least severe log level that the worker, the relay and the HTTP service write.",
    )

    @field_validator("audit_days")
    @classmethod
    def _never_or_old(cls, days: int) -> int:
        if 0 < days < LEAST_AUDIT:
            raise ValueError(f"give 0 (never) or at least {LEAST_AUDIT}")
        return days


@lru_cache
def settings() -> Settings:
    """The process's settings, read once.

    Raises UsageError that names each variable whose value cannot be used.
    """
    try:
        return Settings()
    except ValidationError as error:
        problems = "; ".join(
            f"MEMBANK_{str(e['loc'][0]).upper()}={e['input']!r}: {e['msg']}" for e in error.errors()
        )
        raise UsageError(f"settings cannot be used: {problems}") from None
