"""The tables as SQLAlchemy sees them, for `alembic check`: has the database what migrations made?

Statements are written in SQL where they are used; policies, triggers, functions and views are in
migrations/sql. Nothing here makes a table.
"""

from collections.abc import Sequence
from typing import Any

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    Computed,
    Date,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData()
_TIME = DateTime(timezone=True)


def _tenant() -> Column[int]:
    return Column("tenant_id", BigInteger, nullable=False)


def _of_tenant() -> Column[int]:
    return Column(
        "tenant_id", BigInteger, ForeignKey("tenant.id", ondelete="CASCADE"), nullable=False
    )


def _id() -> Column[int]:
    return Column("id", BigInteger, Identity(always=True), nullable=False)


def _text(name: str) -> Column[str]:
    return Column(name, Text, nullable=False)


def _whole(name: str, nullable: bool = False) -> Column[int]:
    return Column(name, BigInteger, nullable=nullable)


def _number(name: str) -> Column[int]:
    return Column(name, Integer, nullable=False)


def _time(name: str) -> Column[Any]:
    return Column(name, _TIME, nullable=False)


def _reference(
    columns: Sequence[str],
    table: str,
    others: Sequence[str],
    ondelete: str | None = "CASCADE",
    onupdate: str | None = None,
) -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        columns, [f"{table}.{name}" for name in others], ondelete=ondelete, onupdate=onupdate
    )


_DOCUMENT = ("tenant_id", "bank_id", "document_id")
_FILE = ("tenant_id", "bank_id", "file_id")


def _document() -> ForeignKeyConstraint:
    return _reference(_DOCUMENT, "document", ("tenant_id", "bank_id", "id"), onupdate="CASCADE")


def _chunk() -> ForeignKeyConstraint:
    return _reference(("tenant_id", "chunk_id"), "chunk", ("tenant_id", "id"))


Table(
    "tenant",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    _text("name"),
    _time("created_at"),
    Column("paused", Boolean, nullable=False),
    UniqueConstraint("name"),
)
Table(
    "principal",
    metadata,
    _of_tenant(),
    _id(),
    _text("name"),
    _time("created_at"),
    PrimaryKeyConstraint("tenant_id", "id"),
    UniqueConstraint("tenant_id", "name"),
)
Table(
    "principal_group",
    metadata,
    _of_tenant(),
    _id(),
    _text("name"),
    PrimaryKeyConstraint("tenant_id", "id"),
    UniqueConstraint("tenant_id", "name"),
)
Table(
    "group_member",
    metadata,
    _tenant(),
    _whole("group_id"),
    _whole("principal_id"),
    PrimaryKeyConstraint("tenant_id", "principal_id", "group_id"),
    _reference(("tenant_id", "group_id"), "principal_group", ("tenant_id", "id")),
    _reference(("tenant_id", "principal_id"), "principal", ("tenant_id", "id")),
    Index("group_member_group", "tenant_id", "group_id"),
)
Table(
    "encoder_profile",
    metadata,
    _of_tenant(),
    _text("id"),
    Column("spec", JSONB, nullable=False),
    _time("created_at"),
    PrimaryKeyConstraint("tenant_id", "id"),
)
Table(
    "bank",
    metadata,
    _of_tenant(),
    _id(),
    _text("name"),
    _text("profile_id"),
    _time("created_at"),
    Column("next_profile_id", Text),
    Column("switched_at", _TIME),
    Column("metadata", JSONB, nullable=False),
    PrimaryKeyConstraint("tenant_id", "id"),
    UniqueConstraint("tenant_id", "name"),
    _reference(("tenant_id", "profile_id"), "encoder_profile", ("tenant_id", "id"), None),
    _reference(("tenant_id", "next_profile_id"), "encoder_profile", ("tenant_id", "id"), None),
    Index("bank_profile", "tenant_id", "profile_id"),
    Index(
        "bank_next_profile",
        "tenant_id",
        "next_profile_id",
        postgresql_where=text("next_profile_id IS NOT NULL"),
    ),
)
Table(
    "document",
    metadata,
    _tenant(),
    _whole("bank_id"),
    _text("id"),
    _text("source"),
    _text("title"),
    _text("text"),
    Column("access", ARRAY(Text), nullable=False),
    Column("metadata", JSONB, nullable=False),
    _number("revision"),
    _number("split_revision"),
    _text("content_hash"),
    _time("created_at"),
    _time("updated_at"),
    Column("text_hash", Text, Computed("document_hash(title, text)"), nullable=False),
    Column("file_id", Text),
    PrimaryKeyConstraint("tenant_id", "bank_id", "id"),
    _reference(("tenant_id", "bank_id"), "bank", ("tenant_id", "id")),
    _reference(_FILE, "bank_file", _FILE),
    Index("document_file", *_FILE, postgresql_where=text("file_id IS NOT NULL")),
    Index(
        "document_unserved",
        "tenant_id",
        "bank_id",
        "id",
        postgresql_where=text("revision <> split_revision OR text_hash <> content_hash"),
    ),
    Index("document_rights", "tenant_id", "bank_id", "id", postgresql_include=["access"]),
    Index(
        "document_served",
        "tenant_id",
        "bank_id",
        "id",
        postgresql_include=["access"],
        postgresql_where=text("revision = split_revision AND text_hash = content_hash"),
    ),
)
Table(
    "chunk",
    metadata,
    _tenant(),
    _id(),
    _whole("bank_id"),
    _text("document_id"),
    _number("ordinal"),
    _text("text"),
    _text("heading"),
    _number("start_at"),
    _number("end_at"),
    _text("hash"),
    _text("before"),
    PrimaryKeyConstraint("tenant_id", "id"),
    UniqueConstraint("tenant_id", "bank_id", "document_id", "id"),
    _document(),
    Index("chunk_document", *_DOCUMENT, "ordinal"),
)
Table(
    "memory_key",
    metadata,
    _tenant(),
    _whole("chunk_id"),
    _text("profile_id"),
    _whole("bank_id"),
    _text("document_id"),
    Column("embedding", HALFVEC(), nullable=False),
    _time("encoded_at"),
    PrimaryKeyConstraint("tenant_id", "chunk_id", "profile_id"),
    _reference((*_DOCUMENT, "chunk_id"), "chunk", (*_DOCUMENT, "id"), onupdate="CASCADE"),
    Index("memory_key_bank", "tenant_id", "bank_id", "profile_id"),
    Index("memory_key_document", *_DOCUMENT),
)
Table(
    "memory_blob",
    metadata,
    _tenant(),
    _whole("chunk_id"),
    _text("profile_id"),
    _text("sha256"),
    Column("payload", LargeBinary),
    Column("key_version", Integer),
    Column("location", Text),
    _whole("size", nullable=True),
    PrimaryKeyConstraint("tenant_id", "chunk_id", "profile_id"),
    _reference(
        ("tenant_id", "chunk_id", "profile_id"),
        "memory_key",
        ("tenant_id", "chunk_id", "profile_id"),
    ),
    _reference(("tenant_id", "key_version"), "tenant_key", ("tenant_id", "version")),
    Index("memory_blob_key", "tenant_id", "key_version"),
    Index(
        "memory_blob_object",
        "tenant_id",
        "location",
        postgresql_where=text("location IS NOT NULL"),
    ),
)
Table(
    "object_gone",
    metadata,
    _tenant(),
    _id(),
    _text("location"),
    _time("gone_at"),
    PrimaryKeyConstraint("tenant_id", "id"),
)
Table(
    "outbox",
    metadata,
    _tenant(),
    _id(),
    _whole("bank_id"),
    Column("document_id", Text),
    _whole("chunk_id", nullable=True),
    _text("profile_id"),
    _number("revision"),
    _number("attempts"),
    _time("not_before"),
    Column("lease_token", Uuid),
    Column("lease_until", _TIME),
    Column("last_error", Text),
    _time("created_at"),
    Column("priority", SmallInteger, nullable=False),
    Column("file_id", Text),
    PrimaryKeyConstraint("tenant_id", "id"),
    UniqueConstraint(*_DOCUMENT, "chunk_id", "profile_id", name="outbox_once"),
    _document(),
    _chunk(),
    _reference(_FILE, "bank_file", _FILE),
    Index(
        "outbox_due",
        "tenant_id",
        "profile_id",
        text("priority DESC"),
        text("chunk_id NULLS FIRST"),
        "id",
    ),
    Index("outbox_chunk", "tenant_id", "chunk_id"),
    Index("outbox_split", *_DOCUMENT, unique=True, postgresql_where=text("chunk_id IS NULL")),
    Index("outbox_file", *_FILE, unique=True, postgresql_where=text("file_id IS NOT NULL")),
)
Table(
    "dead_letter",
    metadata,
    _tenant(),
    _id(),
    _whole("bank_id"),
    _text("document_id"),
    _whole("chunk_id", nullable=True),
    _number("attempts"),
    _text("error"),
    _time("failed_at"),
    _text("traceback"),
    Column("discarded", Boolean, nullable=False),
    Column("profile_id", Text),
    PrimaryKeyConstraint("tenant_id", "id"),
    _document(),
    _chunk(),
    Index("dead_letter_document", *_DOCUMENT),
    Index("dead_letter_chunk", "tenant_id", "chunk_id"),
)
Table(
    "api_key",
    metadata,
    _tenant(),
    _id(),
    _whole("principal_id"),
    _text("name"),
    Column("hash", LargeBinary, nullable=False),
    Column("scopes", ARRAY(Text), nullable=False),
    _time("created_at"),
    _time("expires_at"),
    Column("revoked_at", _TIME),
    Column("last_used_at", _TIME),
    PrimaryKeyConstraint("tenant_id", "id"),
    _reference(("tenant_id", "principal_id"), "principal", ("tenant_id", "id")),
    Index("api_key_principal", "tenant_id", "principal_id"),
)
Table(
    "bank_member",
    metadata,
    _tenant(),
    _whole("bank_id"),
    _text("grantee"),
    _text("role"),
    PrimaryKeyConstraint("tenant_id", "grantee", "bank_id"),
    _reference(("tenant_id", "bank_id"), "bank", ("tenant_id", "id")),
    Index("bank_member_bank", "tenant_id", "bank_id"),
)
Table(
    "context_key",
    metadata,
    Column("id", Text, primary_key=True),
    Column("inner_pad", LargeBinary, nullable=False),
    Column("outer_pad", LargeBinary, nullable=False),
    _time("created_at"),
    _time("valid_until"),
)
Table(
    "tenant_role",
    metadata,
    Column("tenant_id", BigInteger, ForeignKey("tenant.id", ondelete="CASCADE"), primary_key=True),
    _text("role"),
    _time("created_at"),
    UniqueConstraint("role"),
)
Table(
    "tenant_key",
    metadata,
    _of_tenant(),
    _number("version"),
    Column("id", Uuid, nullable=False),
    _time("created_at"),
    Column("destroyed_at", _TIME),
    PrimaryKeyConstraint("tenant_id", "version"),
)
Table(
    "audit_event",
    metadata,
    _tenant(),
    _id(),
    _time("at"),
    _whole("principal_id", nullable=True),
    _text("actor"),
    _text("action"),
    _whole("bank_id", nullable=True),
    Column("document_ids", ARRAY(Text), nullable=False),
    Column("chunk_ids", ARRAY(BigInteger), nullable=False),
    Column("detail", JSONB, nullable=False),
    PrimaryKeyConstraint("tenant_id", "id"),
    Index("audit_event_at", "tenant_id", "at"),
)
Table(
    "tenant_quota",
    metadata,
    Column("tenant_id", BigInteger, ForeignKey("tenant.id", ondelete="CASCADE"), primary_key=True),
    *(
        _whole(limit, nullable=True)
        for limit in ("documents", "bytes", "requests", "tokens", "upload_bytes")
    ),
)
Table(
    "tenant_usage",
    metadata,
    _of_tenant(),
    Column("day", Date, nullable=False),
    _whole("requests"),
    _whole("tokens"),
    PrimaryKeyConstraint("tenant_id", "day"),
)
Table(
    "file",
    metadata,
    _of_tenant(),
    _text("id"),
    _whole("principal_id", nullable=True),
    _text("filename"),
    _text("purpose"),
    _whole("bytes"),
    Column("content", LargeBinary, nullable=False),
    _text("sha256"),
    _time("created_at"),
    PrimaryKeyConstraint("tenant_id", "id"),
    _reference(
        ("tenant_id", "principal_id"), "principal", ("tenant_id", "id"), "SET NULL (principal_id)"
    ),
    Index("file_principal", "tenant_id", "principal_id", "created_at"),
)
Table(
    "bank_file",
    metadata,
    _tenant(),
    _whole("bank_id"),
    _text("file_id"),
    _whole("principal_id", nullable=True),
    Column("batch_id", Text),
    Column("attributes", JSONB, nullable=False),
    _text("state"),
    Column("error_code", Text),
    Column("error", Text),
    _time("created_at"),
    Column("access", ARRAY(Text)),
    PrimaryKeyConstraint(*_FILE),
    _reference(("tenant_id", "bank_id"), "bank", ("tenant_id", "id")),
    _reference(("tenant_id", "file_id"), "file", ("tenant_id", "id")),
    _reference(
        ("tenant_id", "principal_id"), "principal", ("tenant_id", "id"), "SET NULL (principal_id)"
    ),
    Index("bank_file_file", "tenant_id", "file_id"),
    Index("bank_file_principal", "tenant_id", "principal_id"),
)
Table(
    "idempotency_key",
    metadata,
    _tenant(),
    _whole("principal_id"),
    _text("key"),
    Column("request_hash", LargeBinary, nullable=False),
    Column("status", SmallInteger),
    Column("body", LargeBinary),
    _time("created_at"),
    PrimaryKeyConstraint("tenant_id", "principal_id", "key"),
    _reference(("tenant_id", "principal_id"), "principal", ("tenant_id", "id")),
    Index("idempotency_key_age", "tenant_id", "created_at"),
)
