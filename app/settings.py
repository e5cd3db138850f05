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

    home: Path = Field(Path(".membank"), description="State of the local stack: data, logs, pids.")
    models: Path = Field(
        Path("~/.cache/membank/models"),
        description="Folder of converted default models, shared by all homes of this user.",
    )
    database_url: str | None = Field(
        None,
        description="Postgres to use instead of the embedded one. Logged in as membank_app it is"
        " used as it is; any other user is an administrator that `membank up` provisions with.",
    )
    owner_database_url: str | None = Field(
        None, description="Role membank_owner: migrations. Derived from MEMBANK_DATABASE_URL."
    )
    app_database_url: str | None = Field(
        None, description="Role membank_app: questions. Derived likewise."
    )
    worker_database_url: str | None = Field(
        None, description="Role membank_worker: ingest and encode. Derived likewise."
    )
    admin_database_url: str | None = Field(
        None, description="Role membank_admin: people with psql. Derived likewise."
    )
    context_key: SecretStr | None = Field(
        None,
        description="Secret that signs who is asking, 32 characters or more, the same in all"
        " processes. Without it, the file context.key in MEMBANK_HOME.",
    )
    redis_url: str | None = Field(
        None, description="Redis or Valkey to use instead of the embedded one."
    )
    oidc_issuer: str | None = Field(
        None,
        description="Issuer of tokens (OpenID Connect) that are taken beside API keys, as its"
        " tokens name it in iss.",
    )
    oidc_audience: str | None = Field(
        None, description="What tokens for this service name in aud; needed with an issuer."
    )
    oidc_keys: str | None = Field(
        None,
        description="The issuer's public keys (JWK set): a file or an https address. Without it,"
        " what the issuer's discovery document names.",
    )
    oidc_tenant_claim: str = Field(
        "tenant", description="Claim of a token that holds the name of the tenant."
    )
    oidc_principal_claim: str = Field(
        "sub", description="Claim of a token that holds the name of the principal."
    )
    master_key: SecretStr | None = Field(
        None,
        description="Key that the data keys of tenants are wrapped with: 32 bytes in base64. With"
        " it, or with a file or a KMS, memories are encrypted.",
    )
    master_key_file: Path | None = Field(
        None, description="File that holds the same, which only its owner may read."
    )
    master_kms: str | None = Field(
        None,
        description="Instead of a master key, MODULE:FUNCTION that makes a client of a key"
        " management service (app.vault.masters.Master).",
    )
    old_master_key_file: Path | None = Field(
        None, description="Key that was the master before, until `membank vault rewrap` has run."
    )
    keyring: Path | None = Field(
        None,
        description="Folder of the wrapped data keys, the same for all processes, in no backup of"
        " the database; keyring in MEMBANK_HOME without it.",
    )
    blob_store: str | None = Field(
        None,
        description="Object store that new memories are kept in: a folder that all processes share,"
        " or s3://BUCKET/PREFIX. Without it they are in Postgres.",
    )
    old_blob_store: str | None = Field(
        None,
        description="Store that was set before, read until `membank store move` has emptied it.",
    )
    cache_bytes: int = Field(
        500_000_000,
        ge=0,
        description="Bytes of decoded memories that a process keeps; 0: none.",
    )
    cache_disk_bytes: int = Field(
        2_000_000_000,
        ge=0,
        description="Bytes of memories, as they are stored, that are kept in the cache folder; 0:"
        " none.",
    )
    cache_folder: Path | None = Field(
        None, description="That folder, of this machine; cache in MEMBANK_HOME without it."
    )
    audit_days: int = Field(
        0,
        ge=0,
        description="Days after which the relay deletes events of the audit log, 30 or more; 0:"
        " never.",
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
        description="How memories are made small: auto (the codebook fitted to the model, else"
        " rotated4), int8, rotated4, or the path of a codebook.",
    )
    compaction: str = Field(
        "all",
        description="What is kept of a memory: all, or parts joined by + of layers:FIRST-LAST,"
        " SCORER:SHARE[:FLOOR] and match, such as reconstruction:0.5+match.",
    )
    adapter: str = Field(
        "auto",
        description="Reader adapter: auto (the one that comes with the program for the model, if"
        " any), none, or the --out folder of `membank train`.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Weights and memories: bfloat16 where the processor has it."
    )
    weights: Literal["auto", "float", "int8", "int4"] = Field(
        "auto",
        description="Weights that answers are computed with: as they are loaded (float), rounded to"
        " 8 or 4 bits, which the CPU reads faster and which needs a C compiler, or auto: rounded"
        " where that is possible, to 4 bits only where they lose no more than 8.",
    )
    threads: int = Field(
        0,
        ge=0,
        description="Threads that compute, per process; 0: as many as there are cores, and no more"
        " than a container's CPU quota pays for.",
    )
    top_k: int = Field(1, ge=1, le=100, description="Memories per question when -k is not given.")
    min_score: float = Field(
        0.4,
        ge=-1,
        le=1,
        description="Cosine below which a memory does not count as an answer's source.",
    )
    max_document_bytes: int = Field(
        20_000_000, ge=1, description="Documents with more UTF-8 bytes of text are refused."
    )
    max_upload_bytes: int = Field(
        50_000_000, ge=1, description="Files with more bytes are refused by the HTTP service."
    )
    adapters: Path | None = Field(
        None,
        description="Folder of `membank train --out` folders, which the HTTP service reads with"
        " when a request asks for BANK@NAME.",
    )
    requests_at_once: int = Field(
        256,
        ge=1,
        le=10_000,
        description="Answers that the HTTP service works on at most at a time, for a tenant half"
        " of them.",
    )
    max_batch: int = Field(
        32,
        ge=1,
        le=256,
        description="Answers that the HTTP service computes at a time; more wait for their turn.",
    )
    request_seconds: float = Field(
        120, gt=0, description="Seconds after which the HTTP service gives an answer up."
    )
    rate_per_minute: int = Field(
        0,
        ge=0,
        description="Requests a minute that the HTTP service takes from a tenant, over all of its"
        " processes; 0: any number.",
    )
    max_request_bytes: int = Field(
        2_000_000,
        ge=1,
        description="Bytes of a request to the HTTP service, files apart.",
    )
    batch_tokens: int = Field(
        2048, ge=128, description="Tokens that a worker encodes in one model call."
    )
    lease_seconds: int = Field(
        30, ge=2, description="Work of a worker that falls silent is free again after this long."
    )
    max_attempts: int = Field(5, ge=1, description="Failures of one chunk before dead_letter.")
    poll_seconds: float = Field(0.5, gt=0, description="How often the relay looks for work.")
    reconcile_seconds: float = Field(
        300, gt=0, description="How often the relay looks for changes that no trigger noticed."
    )
    hnsw_from: int = Field(
        20_000,
        ge=100,
        description="Memories from which on a bank gets a vector index; smaller ones are searched"
        " exactly.",
    )
    maintain_seconds: float = Field(
        300, gt=0, description="How often the relay looks for banks that need an index, or no more."
    )
    api_host: str = Field("127.0.0.1", description="Address that the HTTP service listens on.")
    api_port: int = Field(
        0,
        ge=0,
        le=65_535,
        description="Its port; 0: the one that this home had before, else the first free one from"
        " 8000 on.",
    )
    api_admin: bool | None = Field(
        None,
        description="Whether the HTTP service offers administration, for which it logs in as"
        " membank_admin. Without it: where the address of that role is known.",
    )
    api_stale_seconds: float = Field(
        600,
        gt=0,
        description="Age of the oldest due work from which on the HTTP service says that it is not"
        " ready.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least severe log line that worker, relay and HTTP service write."
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
