-- name: waiting_files
-- Queues uploaded files that wait for a worker but are not in the outbox.
WITH waiting AS (
    SELECT f.bank_id, f.file_id FROM bank_file f
    WHERE f.tenant_id = :tenant AND f.state = 'storing'
        AND NOT EXISTS (SELECT FROM outbox o WHERE o.tenant_id = :tenant
            AND o.bank_id = f.bank_id AND o.file_id = f.file_id)
    LIMIT :page FOR NO KEY UPDATE OF f SKIP LOCKED)
INSERT INTO outbox (tenant_id, bank_id, file_id, profile_id, revision, priority)
SELECT :tenant, f.bank_id, f.file_id, b.profile_id, 0, -1
FROM waiting f JOIN bank b ON b.tenant_id = :tenant AND b.id = f.bank_id
ON CONFLICT DO NOTHING

-- name: changed
-- Makes a new revision of documents whose text was changed while triggers were off. If the trigger
-- is on now, it sets the two columns to the same values as this statement does.
WITH unnoticed AS (
    SELECT bank_id, id FROM document WHERE tenant_id = :tenant AND text_hash <> content_hash
    LIMIT :page FOR NO KEY UPDATE SKIP LOCKED)
UPDATE document d SET content_hash = d.text_hash, revision = d.revision + 1
FROM unnoticed u WHERE d.tenant_id = :tenant AND d.bank_id = u.bank_id AND d.id = u.id

-- name: behind
-- Queues documents whose chunks are of an older revision and that are neither queued nor failed.
WITH behind AS (
    SELECT d.bank_id, d.id, d.revision FROM document d
    WHERE d.tenant_id = :tenant AND d.revision <> d.split_revision
        AND NOT EXISTS (SELECT FROM outbox o WHERE o.tenant_id = :tenant
            AND o.bank_id = d.bank_id AND o.document_id = d.id AND o.chunk_id IS NULL)
        AND NOT EXISTS (SELECT FROM dead_letter l WHERE l.tenant_id = :tenant
            AND l.bank_id = d.bank_id AND l.document_id = d.id AND l.chunk_id IS NULL)
    LIMIT :page FOR NO KEY UPDATE OF d SKIP LOCKED)
INSERT INTO outbox (tenant_id, bank_id, document_id, chunk_id, profile_id, revision)
SELECT :tenant, d.bank_id, d.id, NULL, b.profile_id, d.revision
FROM behind d JOIN bank b ON b.tenant_id = :tenant AND b.id = d.bank_id
ON CONFLICT DO NOTHING

-- name: outlived
-- Deletes failures of a text that has changed since. A trigger does the same, where it is on.
DELETE FROM dead_letter l USING document d
WHERE l.tenant_id = :tenant AND l.chunk_id IS NULL AND d.tenant_id = :tenant
    AND d.bank_id = l.bank_id AND d.id = l.document_id AND d.text_hash <> d.content_hash

-- name: without_memory
-- Queues chunks in a range of ids that have no memory and are neither queued nor failed.
WITH lost AS (
    SELECT d.bank_id, d.id AS document_id, c.id, p.id AS profile_id, p.priority
    FROM chunk c JOIN bank b ON b.tenant_id = :tenant AND b.id = c.bank_id
    JOIN document d ON d.tenant_id = :tenant AND d.bank_id = c.bank_id AND d.id = c.document_id
    CROSS JOIN LATERAL (VALUES (b.profile_id, 0), (b.next_profile_id, -1)) p (id, priority)
    WHERE c.tenant_id = :tenant AND c.id > :after AND c.id <= :upto AND p.id IS NOT NULL
        AND NOT EXISTS (SELECT FROM memory_blob m WHERE m.tenant_id = :tenant
            AND m.chunk_id = c.id AND m.profile_id = p.id)
        AND NOT EXISTS (SELECT FROM outbox o WHERE o.tenant_id = :tenant AND o.chunk_id = c.id
            AND o.profile_id = p.id)
        AND NOT EXISTS (SELECT FROM dead_letter l WHERE l.tenant_id = :tenant
            AND l.chunk_id = c.id AND l.profile_id = p.id)
    ORDER BY c.id  -- as bank_fill does, or both could wait for each other
    FOR NO KEY UPDATE OF d SKIP LOCKED FOR KEY SHARE OF c SKIP LOCKED)
INSERT INTO outbox
    (tenant_id, bank_id, document_id, chunk_id, profile_id, revision, priority)
SELECT :tenant, bank_id, document_id, id, profile_id, 0, priority FROM lost
ON CONFLICT DO NOTHING
