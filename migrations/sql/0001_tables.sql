CREATE TABLE tenant (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 200),
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE tenant IS 'A company. Every other row belongs to exactly one.';

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
    tenant_id  bigint NOT NULL REFERENCES tenant ON DELETE CASCADE,
    id         bigint GENERATED ALWAYS AS IDENTITY,
    name       text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    profile_id text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, name),
    FOREIGN KEY (tenant_id, profile_id) REFERENCES encoder_profile (tenant_id, id)
);
CREATE INDEX bank_profile ON bank (tenant_id, profile_id);
COMMENT ON TABLE bank IS 'A tenant''s collection of documents, encoded under one profile.';

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
    PRIMARY KEY (tenant_id, bank_id, id),
    FOREIGN KEY (tenant_id, bank_id) REFERENCES bank (tenant_id, id) ON DELETE CASCADE
);
COMMENT ON TABLE document IS
    'A source text. UPDATE title or text freely: a worker splits and encodes what changed.';
COMMENT ON COLUMN document.access IS
    'Who may read it: everyone, principal:NAME, group:NAME. Empty means nobody.';
COMMENT ON COLUMN document.revision IS 'Counted up by a trigger when title or text changes.';
COMMENT ON COLUMN document.split_revision IS
    'Revision that the chunks are of. While it is behind, none of the document is served.';
COMMENT ON COLUMN document.content_hash IS 'sha256 of title and text, kept by a trigger.';

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
COMMENT ON TABLE memory_key IS 'What a chunk is found by. Rows are written once.';

CREATE TABLE memory_blob (
    tenant_id  bigint NOT NULL,
    chunk_id   bigint NOT NULL,
    profile_id text NOT NULL,
    sha256     text NOT NULL,
    payload    bytea STORAGE EXTERNAL NOT NULL,
    PRIMARY KEY (tenant_id, chunk_id, profile_id),
    FOREIGN KEY (tenant_id, chunk_id, profile_id)
        REFERENCES memory_key (tenant_id, chunk_id, profile_id) ON DELETE CASCADE
);
COMMENT ON TABLE memory_blob IS
    'What attention reads: packed keys and values. As secret as the text. Rows are written once.';

CREATE TABLE outbox (
    tenant_id   bigint NOT NULL,
    id          bigint GENERATED ALWAYS AS IDENTITY,
    bank_id     bigint NOT NULL,
    document_id text NOT NULL,
    chunk_id    bigint,
    profile_id  text NOT NULL,
    revision    integer NOT NULL,
    attempts    integer NOT NULL DEFAULT 0,
    not_before  timestamptz NOT NULL DEFAULT now(),
    lease_token uuid,
    lease_until timestamptz,
    last_error  text,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id),
    UNIQUE NULLS NOT DISTINCT (tenant_id, bank_id, document_id, chunk_id),
    FOREIGN KEY (tenant_id, bank_id, document_id)
        REFERENCES document (tenant_id, bank_id, id) ON DELETE CASCADE ON UPDATE CASCADE,
    FOREIGN KEY (tenant_id, chunk_id) REFERENCES chunk (tenant_id, id) ON DELETE CASCADE
);
-- In the order in which work is claimed: splits first, then chunks as they were added.
CREATE INDEX outbox_due ON outbox (tenant_id, profile_id, chunk_id NULLS FIRST, id);
CREATE INDEX outbox_chunk ON outbox (tenant_id, chunk_id);
COMMENT ON TABLE outbox IS
    'Work to do, the only truth of it: split a document (chunk_id null) or encode a chunk.';
COMMENT ON COLUMN outbox.lease_until IS 'A worker holds the row until then; later it is free again.';

CREATE TABLE dead_letter (
    tenant_id   bigint NOT NULL,
    id          bigint GENERATED ALWAYS AS IDENTITY,
    bank_id     bigint NOT NULL,
    document_id text NOT NULL,
    chunk_id    bigint,
    attempts    integer NOT NULL,
    error       text NOT NULL,
    failed_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, bank_id, document_id)
        REFERENCES document (tenant_id, bank_id, id) ON DELETE CASCADE ON UPDATE CASCADE,
    FOREIGN KEY (tenant_id, chunk_id) REFERENCES chunk (tenant_id, id) ON DELETE CASCADE
);
CREATE INDEX dead_letter_document ON dead_letter (tenant_id, bank_id, document_id);
CREATE INDEX dead_letter_chunk ON dead_letter (tenant_id, chunk_id);
COMMENT ON TABLE dead_letter IS 'Work that failed on every attempt, with its last error.';
