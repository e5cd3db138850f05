-- What is kept. Every table but context_key leads with its tenant, and so does every key of it: that
-- keeps row-level security cheap, and lets a tenant be moved to another server.
--
-- The order is that of the references, and the order in which a deletion cascades: a bank's
-- documents go before its members. Columns stand in the order in which they came; a new one is
-- added at the end, as ALTER TABLE does it.

---------------------------------------------------------------------------------------------------
-- Who
---------------------------------------------------------------------------------------------------

CREATE TABLE tenant (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 200),
    created_at timestamptz NOT NULL DEFAULT now(),
    paused     boolean NOT NULL DEFAULT false
);
COMMENT ON TABLE tenant IS 'A company. Every other row belongs to exactly one.';
COMMENT ON COLUMN tenant.paused IS
    'While true, workers take none of its work; what they hold already is finished.';

CREATE TABLE principal (
    tenant_id  bigint NOT NULL REFERENCES tenant ON DELETE CASCADE,
    id         bigint GENERATED ALWAYS AS IDENTITY,
    name       text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, name)
);
COMMENT ON TABLE principal IS 'A user or a service of a tenant: the one who asks.';

CREATE TABLE principal_group (
    tenant_id  bigint NOT NULL REFERENCES tenant ON DELETE CASCADE,
    id         bigint GENERATED ALWAYS AS IDENTITY,
    name       text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, name)
);
COMMENT ON TABLE principal_group IS 'A set of principals that a document can be shared with.';

CREATE TABLE group_member (
    tenant_id    bigint NOT NULL,
    group_id     bigint NOT NULL,
    principal_id bigint NOT NULL,
    PRIMARY KEY (tenant_id, principal_id, group_id),
    FOREIGN KEY (tenant_id, group_id) REFERENCES principal_group (tenant_id, id) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, principal_id) REFERENCES principal (tenant_id, id) ON DELETE CASCADE
);
CREATE INDEX group_member_group ON group_member (tenant_id, group_id);
COMMENT ON TABLE group_member IS 'Who is in which group. A change counts from the next question.';

-- Only find_key() looks at hashes, and only for a key that is shown.
CREATE TABLE api_key (
    tenant_id    bigint NOT NULL,
    id           bigint GENERATED ALWAYS AS IDENTITY,
    principal_id bigint NOT NULL,
    name         text NOT NULL DEFAULT '' CHECK (length(name) <= 200),
    hash         bytea NOT NULL CHECK (length(hash) = 32),
    scopes       text[] NOT NULL CHECK (scopes <@ '{read,write,admin}' AND scopes <> '{}'),
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz NOT NULL,
    revoked_at   timestamptz,
    last_used_at timestamptz,
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, principal_id) REFERENCES principal (tenant_id, id) ON DELETE CASCADE
);
CREATE INDEX api_key_principal ON api_key (tenant_id, principal_id);
COMMENT ON TABLE api_key IS 'What a principal presents to prove who it is.';
COMMENT ON COLUMN api_key.hash IS 'sha256 of the secret, which has 256 random bits and is not kept.';
COMMENT ON COLUMN api_key.scopes IS
    'read: search and ask. write: ingest and forget. admin: lists, roles, groups, keys.';
COMMENT ON COLUMN api_key.last_used_at IS 'Written at most once a minute.';

-- Of no tenant. app/db/session.py signs who is asking with one of these, signed_context() checks.
CREATE TABLE context_key (
    id          text PRIMARY KEY,
    inner_pad   bytea NOT NULL,
    outer_pad   bytea NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    valid_until timestamptz NOT NULL DEFAULT 'infinity'
);
COMMENT ON TABLE context_key IS
    'Keys that say who is asking, each as the two blocks that HMAC-SHA256 begins with. Secret.';
COMMENT ON COLUMN context_key.valid_until IS 'Signatures of a key that was replaced count until then.';

---------------------------------------------------------------------------------------------------
-- Banks
---------------------------------------------------------------------------------------------------

CREATE TABLE encoder_profile (
    tenant_id  bigint NOT NULL REFERENCES tenant ON DELETE CASCADE,
    id         text NOT NULL,
    spec       jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id)
);
COMMENT ON TABLE encoder_profile IS
    'All that makes memories comparable: model, prefix, codec, embedder. id is a hash of spec.';

CREATE TABLE bank (
    tenant_id       bigint NOT NULL REFERENCES tenant ON DELETE CASCADE,
    id              bigint GENERATED ALWAYS AS IDENTITY,
    name            text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    profile_id      text NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    next_profile_id text,
    switched_at     timestamptz,
    metadata        jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, name),
    FOREIGN KEY (tenant_id, profile_id) REFERENCES encoder_profile (tenant_id, id),
    FOREIGN KEY (tenant_id, next_profile_id) REFERENCES encoder_profile (tenant_id, id)
);
CREATE INDEX bank_profile ON bank (tenant_id, profile_id);
CREATE INDEX bank_next_profile ON bank (tenant_id, next_profile_id)
    WHERE next_profile_id IS NOT NULL;
COMMENT ON TABLE bank IS 'A tenant''s collection of documents, encoded under one profile.';
COMMENT ON COLUMN bank.next_profile_id IS
    'Set it, and every chunk is encoded under that profile too; then it becomes profile_id. Null'
    ' drops the change.';
COMMENT ON COLUMN bank.switched_at IS 'When profile_id last changed. Null: never.';
COMMENT ON COLUMN bank.metadata IS 'Notes of whoever made it. The program does not read them.';

---------------------------------------------------------------------------------------------------
-- What a tenant has: logins, data keys, limits
---------------------------------------------------------------------------------------------------

-- A person of a tenant logs in under a role of their own, a member of membank_tenant. The tenant
-- follows from who logged in, and from no setting.
CREATE TABLE tenant_role (
    tenant_id  bigint NOT NULL PRIMARY KEY REFERENCES tenant ON DELETE CASCADE,
    role       text NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE tenant_role IS 'Which login role belongs to which tenant: membank tenant role.';

-- What opens a blob lies in the keyring, a folder outside of the database, so that no backup of the
-- database holds it: here are its name and its times.
CREATE TABLE tenant_key (
    tenant_id    bigint NOT NULL REFERENCES tenant ON DELETE CASCADE,
    version      integer NOT NULL CHECK (version > 0),
    id           uuid NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    destroyed_at timestamptz,
    PRIMARY KEY (tenant_id, version)
);
COMMENT ON TABLE tenant_key IS
    'Versions of the key that a tenant''s memories are encrypted with. New memories get the highest.';
COMMENT ON COLUMN tenant_key.id IS 'Name of its file in the keyring. No secret.';
COMMENT ON COLUMN tenant_key.destroyed_at IS 'When no memory needed it any more and it was deleted.';

CREATE TABLE tenant_quota (
    tenant_id    bigint PRIMARY KEY REFERENCES tenant ON DELETE CASCADE,
    documents    bigint CHECK (documents >= 0),
    bytes        bigint CHECK (bytes >= 0),
    requests     bigint CHECK (requests >= 0),
    tokens       bigint CHECK (tokens >= 0),
    upload_bytes bigint CHECK (upload_bytes >= 0)
);
COMMENT ON TABLE tenant_quota IS 'Limits of a tenant. Null, or no row: none.';
COMMENT ON COLUMN tenant_quota.bytes IS 'Of memories, as they are stored.';
COMMENT ON COLUMN tenant_quota.requests IS 'Questions and searches of a day.';
COMMENT ON COLUMN tenant_quota.tokens IS 'Tokens of prompts and answers of a day.';
COMMENT ON COLUMN tenant_quota.upload_bytes IS 'Of uploaded files, as they were sent.';

-- Half of each page is free, so that a row that is counted up stays on it and no index is touched.
CREATE TABLE tenant_usage (
    tenant_id bigint NOT NULL REFERENCES tenant ON DELETE CASCADE,
    day       date NOT NULL,
    requests  bigint NOT NULL DEFAULT 0,
    tokens    bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant_id, day)
) WITH (fillfactor = 50);
COMMENT ON TABLE tenant_usage IS 'What a tenant asked on a day, by UTC.';

---------------------------------------------------------------------------------------------------
-- Documents and files
---------------------------------------------------------------------------------------------------

-- What title and text hash to. It stands here because a column needs it. Immutable in truth: the
-- encoding is named.
CREATE FUNCTION document_hash(title text, body text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT encode(sha256(convert_to(title || E'\n' || body, 'UTF8')), 'hex')
$$;

CREATE TABLE document (
    tenant_id      bigint NOT NULL,
    bank_id        bigint NOT NULL,
    id             text NOT NULL CHECK (length(id) BETWEEN 1 AND 512),
    source         text NOT NULL,
    title          text NOT NULL,
    text           text NOT NULL,
    access         text[] NOT NULL DEFAULT '{everyone}',
    metadata       jsonb NOT NULL DEFAULT '{}',
    revision       integer NOT NULL DEFAULT 1,
    split_revision integer NOT NULL DEFAULT 0,
    content_hash   text NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now(),
    -- A generated column is computed by the table itself, also where no trigger fires: in a restore,
    -- on a subscriber, after DISABLE TRIGGER. Where it is not the trigger's hash, nothing is served.
    text_hash      text NOT NULL GENERATED ALWAYS AS (document_hash(title, text)) STORED,
    file_id        text,
    PRIMARY KEY (tenant_id, bank_id, id),
    FOREIGN KEY (tenant_id, bank_id) REFERENCES bank (tenant_id, id) ON DELETE CASCADE
);
-- The few that a search leaves out and a reconciliation looks at.
CREATE INDEX document_unserved ON document (tenant_id, bank_id, id)
    WHERE revision <> split_revision OR text_hash <> content_hash;
-- Who may read which document, in an index alone: gone through for a reader of few, looked into for
-- each key that another index brings. The second is of those whose chunks are of their present text.
CREATE INDEX document_rights ON document (tenant_id, bank_id, id) INCLUDE (access);
CREATE INDEX document_served ON document (tenant_id, bank_id, id) INCLUDE (access)
    WHERE revision = split_revision AND text_hash = content_hash;
CREATE INDEX document_file ON document (tenant_id, bank_id, file_id) WHERE file_id IS NOT NULL;
COMMENT ON TABLE document IS
    'A source text. UPDATE title or text freely: a worker splits and encodes what changed.';
COMMENT ON COLUMN document.access IS
    'Who may read it: everyone, principal:NAME, group:NAME. Empty means nobody.';
COMMENT ON COLUMN document.revision IS 'Incremented by a trigger when title or text changes.';
COMMENT ON COLUMN document.split_revision IS
    'Revision that the chunks are of. While it is behind, none of the document is served.';
COMMENT ON COLUMN document.content_hash IS 'sha256 of title and text, kept by a trigger.';
COMMENT ON COLUMN document.text_hash IS
    'The same, kept by the table. Differs from content_hash when a change bypassed the triggers;'
    ' then none of the document is served, and a reconciliation queues it.';
COMMENT ON COLUMN document.file_id IS 'The uploaded file that it came from, and is deleted with.';

CREATE TABLE bank_member (
    tenant_id bigint NOT NULL,
    bank_id   bigint NOT NULL,
    grantee   text NOT NULL CHECK (grantee ~ '^(everyone|(principal|group):.+)$'),
    role      text NOT NULL CHECK (role IN ('reader', 'writer', 'admin')),
    PRIMARY KEY (tenant_id, grantee, bank_id),  -- as current_banks() asks
    FOREIGN KEY (tenant_id, bank_id) REFERENCES bank (tenant_id, id) ON DELETE CASCADE
);
CREATE INDEX bank_member_bank ON bank_member (tenant_id, bank_id);
COMMENT ON TABLE bank_member IS
    'Who may do what in a bank. Without members it is closed. A change counts from the next question.';
COMMENT ON COLUMN bank_member.grantee IS 'everyone, principal:NAME or group:NAME, as in a list.';
COMMENT ON COLUMN bank_member.role IS
    'reader: reads what the documents'' lists allow. writer: also stores and forgets. admin: also'
    ' changes lists and roles.';

CREATE TABLE file (
    tenant_id    bigint NOT NULL REFERENCES tenant ON DELETE CASCADE,
    id           text NOT NULL CHECK (length(id) BETWEEN 1 AND 100),
    principal_id bigint,
    filename     text NOT NULL CHECK (length(filename) BETWEEN 1 AND 1000),
    purpose      text NOT NULL CHECK (length(purpose) BETWEEN 1 AND 100),
    bytes        bigint NOT NULL,
    content      bytea STORAGE EXTERNAL NOT NULL,
    sha256       text NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, principal_id) REFERENCES principal (tenant_id, id)
        ON DELETE SET NULL (principal_id)
);
CREATE INDEX file_principal ON file (tenant_id, principal_id, created_at);
COMMENT ON TABLE file IS 'A file as it was uploaded. For who uploaded it, and for administrators.';
COMMENT ON COLUMN file.id IS 'file- and 144 random bits.';
COMMENT ON COLUMN file.principal_id IS 'Who uploaded it. Null: someone deleted since.';
COMMENT ON COLUMN file.filename IS 'What the uploader calls it. Nothing is ever opened by it.';

CREATE TABLE bank_file (
    tenant_id    bigint NOT NULL,
    bank_id      bigint NOT NULL,
    file_id      text NOT NULL,
    principal_id bigint,
    batch_id     text,
    attributes   jsonb NOT NULL DEFAULT '{}',
    state        text NOT NULL DEFAULT 'storing'
        CHECK (state IN ('storing', 'stored', 'failed', 'cancelled')),
    error_code   text,
    error        text,
    created_at   timestamptz NOT NULL DEFAULT now(),
    access       text[],
    PRIMARY KEY (tenant_id, bank_id, file_id),
    FOREIGN KEY (tenant_id, bank_id) REFERENCES bank (tenant_id, id) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, file_id) REFERENCES file (tenant_id, id) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, principal_id) REFERENCES principal (tenant_id, id)
        ON DELETE SET NULL (principal_id)
);
CREATE INDEX bank_file_file ON bank_file (tenant_id, file_id);
CREATE INDEX bank_file_principal ON bank_file (tenant_id, principal_id);
COMMENT ON TABLE bank_file IS 'A file whose documents a bank has, or was to have.';
COMMENT ON COLUMN bank_file.principal_id IS 'Who put it there.';
COMMENT ON COLUMN bank_file.batch_id IS 'Shared by the files that one call put there; null: it came alone.';
COMMENT ON COLUMN bank_file.attributes IS 'Also part of the metadata of its documents.';
COMMENT ON COLUMN bank_file.state IS
    'storing: waits for a worker, which reads it. stored: all its documents are there. failed: not'
    ' all of them, or none.';
COMMENT ON COLUMN bank_file.access IS
    'Access list of those of its documents that bring none. Null: everyone, or what the document had.';

-- One file may give many documents; a document is of the file that gave it last. Not in the table
-- above: of a bank that is deleted, the documents go before the files.
ALTER TABLE document ADD FOREIGN KEY (tenant_id, bank_id, file_id)
    REFERENCES bank_file (tenant_id, bank_id, file_id) ON DELETE CASCADE;

---------------------------------------------------------------------------------------------------
-- Memories
---------------------------------------------------------------------------------------------------

CREATE TABLE chunk (
    tenant_id   bigint NOT NULL,
    id          bigint GENERATED ALWAYS AS IDENTITY,
    bank_id     bigint NOT NULL,
    document_id text NOT NULL,
    ordinal     integer NOT NULL,
    text        text NOT NULL,
    heading     text NOT NULL,
    start_at    integer NOT NULL,
    end_at      integer NOT NULL,
    hash        text NOT NULL,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, bank_id, document_id, id),
    FOREIGN KEY (tenant_id, bank_id, document_id)
        REFERENCES document (tenant_id, bank_id, id) ON DELETE CASCADE ON UPDATE CASCADE
);
CREATE INDEX chunk_document ON chunk (tenant_id, bank_id, document_id, ordinal);
COMMENT ON TABLE chunk IS
    'A piece of a document, at most 128 tokens. Its text never changes: an edit makes new chunks.';
COMMENT ON COLUMN chunk.start_at IS 'Place in document.text, in characters from 0.';

CREATE TABLE memory_key (
    tenant_id   bigint NOT NULL,
    chunk_id    bigint NOT NULL,
    profile_id  text NOT NULL,
    bank_id     bigint NOT NULL,
    document_id text NOT NULL,
    embedding   halfvec NOT NULL,
    encoded_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, chunk_id, profile_id),
    -- With the document, since it decides who may read: it stays the chunk's also when renamed.
    FOREIGN KEY (tenant_id, bank_id, document_id, chunk_id)
        REFERENCES chunk (tenant_id, bank_id, document_id, id) ON DELETE CASCADE ON UPDATE CASCADE
);
CREATE INDEX memory_key_bank ON memory_key (tenant_id, bank_id, profile_id);
-- To the keys of a few documents: a reader whose list leaves little of a large bank, a strict filter.
CREATE INDEX memory_key_document ON memory_key (tenant_id, bank_id, document_id);
COMMENT ON TABLE memory_key IS 'What a chunk is found by. Rows are written once.';

CREATE TABLE memory_blob (
    tenant_id   bigint NOT NULL,
    chunk_id    bigint NOT NULL,
    profile_id  text NOT NULL,
    sha256      text NOT NULL,
    payload     bytea STORAGE EXTERNAL,
    key_version integer,
    location    text,
    size        bigint,
    PRIMARY KEY (tenant_id, chunk_id, profile_id),
    FOREIGN KEY (tenant_id, chunk_id, profile_id)
        REFERENCES memory_key (tenant_id, chunk_id, profile_id) ON DELETE CASCADE,
    -- Whoever deletes a key gives up what only it opens.
    FOREIGN KEY (tenant_id, key_version)
        REFERENCES tenant_key (tenant_id, version) ON DELETE CASCADE,
    CONSTRAINT memory_blob_place
        CHECK ((payload IS NULL) = (location IS NOT NULL) AND (location IS NULL) = (size IS NULL)),
    -- Whatever a row is made to say, it names no object of another tenant.
    CONSTRAINT memory_blob_own CHECK (location LIKE tenant_id || '/%')
);
CREATE INDEX memory_blob_key ON memory_blob (tenant_id, key_version);
CREATE INDEX memory_blob_object ON memory_blob (tenant_id, location) WHERE location IS NOT NULL;
COMMENT ON TABLE memory_blob IS
    'What attention reads: packed keys and values. As secret as the text. Written once, and again'
    ' only to be encrypted under another key.';
COMMENT ON COLUMN memory_blob.sha256 IS
    'Of payload as it is stored: of the encrypted bytes where it is encrypted.';
COMMENT ON COLUMN memory_blob.payload IS 'The bytes; null where they are an object.';
COMMENT ON COLUMN memory_blob.key_version IS
    'Version of the tenant''s key that payload is encrypted with; null: it is not encrypted.';
COMMENT ON COLUMN memory_blob.location IS
    'Name of the object that holds the bytes, TENANT/PROFILE/SHA256; null where payload does.';
COMMENT ON COLUMN memory_blob.size IS 'Bytes of the object.';

-- No reference to the tenant: objects outlive it.
CREATE TABLE object_gone (
    tenant_id bigint NOT NULL,
    id        bigint GENERATED ALWAYS AS IDENTITY,
    location  text NOT NULL,
    gone_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id)
);
COMMENT ON TABLE object_gone IS
    'Objects that a memory no longer needs. The relay removes each that no other memory needs.';

---------------------------------------------------------------------------------------------------
-- The queue
---------------------------------------------------------------------------------------------------

CREATE TABLE outbox (
    tenant_id   bigint NOT NULL,
    id          bigint GENERATED ALWAYS AS IDENTITY,
    bank_id     bigint NOT NULL,
    document_id text,
    chunk_id    bigint,
    profile_id  text NOT NULL,
    revision    integer NOT NULL,
    attempts    integer NOT NULL DEFAULT 0,
    not_before  timestamptz NOT NULL DEFAULT now(),
    lease_token uuid,
    lease_until timestamptz,
    last_error  text,
    created_at  timestamptz NOT NULL DEFAULT now(),
    priority    smallint NOT NULL DEFAULT 0,
    file_id     text,
    PRIMARY KEY (tenant_id, id),
    -- A chunk can wait for two profiles; a document is split once for both.
    CONSTRAINT outbox_once UNIQUE (tenant_id, bank_id, document_id, chunk_id, profile_id),
    CONSTRAINT outbox_what CHECK ((document_id IS NULL) <> (file_id IS NULL)
        AND (file_id IS NULL OR chunk_id IS NULL)),
    FOREIGN KEY (tenant_id, bank_id, document_id)
        REFERENCES document (tenant_id, bank_id, id) ON DELETE CASCADE ON UPDATE CASCADE,
    FOREIGN KEY (tenant_id, chunk_id) REFERENCES chunk (tenant_id, id) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, bank_id, file_id)
        REFERENCES bank_file (tenant_id, bank_id, file_id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX outbox_split ON outbox (tenant_id, bank_id, document_id)
    WHERE chunk_id IS NULL;
CREATE UNIQUE INDEX outbox_file ON outbox (tenant_id, bank_id, file_id) WHERE file_id IS NOT NULL;
-- In the order in which work is claimed: edits first, splits before chunks, then as it was added.
CREATE INDEX outbox_due
    ON outbox (tenant_id, profile_id, priority DESC, chunk_id NULLS FIRST, id);
CREATE INDEX outbox_chunk ON outbox (tenant_id, chunk_id);
COMMENT ON TABLE outbox IS
    'Work to do, the only truth of it: store a file, split a document (chunk_id null) or encode a'
    ' chunk.';
COMMENT ON COLUMN outbox.profile_id IS
    'Only workers of this profile take it. A split is for those of the bank''s profile.';
COMMENT ON COLUMN outbox.lease_until IS 'A worker holds the row until then; after that it is free again.';
COMMENT ON COLUMN outbox.priority IS
    'Higher goes first within a tenant and profile: 1 for an edited document, 0 for a new one, -1'
    ' for uploaded files and for what a change of profile encodes anew.';
COMMENT ON COLUMN outbox.file_id IS 'The uploaded file whose documents are to be stored.';

CREATE TABLE dead_letter (
    tenant_id   bigint NOT NULL,
    id          bigint GENERATED ALWAYS AS IDENTITY,
    bank_id     bigint NOT NULL,
    document_id text NOT NULL,
    chunk_id    bigint,
    attempts    integer NOT NULL,
    error       text NOT NULL,
    failed_at   timestamptz NOT NULL DEFAULT now(),
    traceback   text NOT NULL DEFAULT '',
    discarded   boolean NOT NULL DEFAULT false,
    profile_id  text,
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, bank_id, document_id)
        REFERENCES document (tenant_id, bank_id, id) ON DELETE CASCADE ON UPDATE CASCADE,
    FOREIGN KEY (tenant_id, chunk_id) REFERENCES chunk (tenant_id, id) ON DELETE CASCADE
);
CREATE INDEX dead_letter_document ON dead_letter (tenant_id, bank_id, document_id);
CREATE INDEX dead_letter_chunk ON dead_letter (tenant_id, chunk_id);
COMMENT ON TABLE dead_letter IS 'Work that failed on every attempt, with its last error.';
COMMENT ON COLUMN dead_letter.traceback IS 'Where in the program the last attempt failed.';
COMMENT ON COLUMN dead_letter.discarded IS
    'Given up: neither listed nor tried again. An edit of the text makes new work.';
COMMENT ON COLUMN dead_letter.profile_id IS
    'Profile that the chunk was to be encoded under; null where splitting failed.';

---------------------------------------------------------------------------------------------------
-- What happened
---------------------------------------------------------------------------------------------------

-- Without any text. No reference to tenant: that it was erased is told after it.
CREATE TABLE audit_event (
    tenant_id    bigint NOT NULL,
    id           bigint GENERATED ALWAYS AS IDENTITY,
    at           timestamptz NOT NULL,
    principal_id bigint,
    actor        text NOT NULL,
    action       text NOT NULL CHECK (length(action) BETWEEN 1 AND 40),
    bank_id      bigint,
    document_ids text[] NOT NULL DEFAULT '{}',
    chunk_ids    bigint[] NOT NULL DEFAULT '{}',
    detail       jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX audit_event_at ON audit_event (tenant_id, at);
COMMENT ON TABLE audit_event IS
    'Who did what. Rows are only added: not even an administrator changes or deletes one.';
COMMENT ON COLUMN audit_event.actor IS
    'Name of the principal; where there is none, the role that was logged in.';
COMMENT ON COLUMN audit_event.chunk_ids IS 'Memories that entered an answer or were found.';
