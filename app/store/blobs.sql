-- name: readable
-- Where to find the memories that the asker may read and whose text has not changed. Each chunk is
-- looked up by itself: LIMIT keeps the planner from going through all of a tenant's keys, which it
-- believes to be few.
SELECT b.chunk_id, b.version, b.sha256, b.key_version, t.id AS key_id, b.location
FROM unnest(cast(:chunks AS bigint[])) c (id)
CROSS JOIN LATERAL (SELECT bank_id, document_id FROM memory_key
    WHERE tenant_id = :tenant AND chunk_id = c.id AND profile_id = :profile LIMIT 1) k
CROSS JOIN LATERAL (SELECT FROM document
    WHERE tenant_id = :tenant AND bank_id = k.bank_id AND id = k.document_id
        AND revision = split_revision AND text_hash = content_hash LIMIT 1) d
CROSS JOIN LATERAL (SELECT chunk_id, xmin::text AS version, sha256, key_version, location
    FROM memory_blob
    WHERE tenant_id = :tenant AND chunk_id = c.id AND profile_id = :profile LIMIT 1) b
LEFT JOIN tenant_key t ON t.tenant_id = :tenant AND t.version = b.key_version
