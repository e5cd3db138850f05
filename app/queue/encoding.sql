-- name: held
-- The rows whose leases still hold.
SELECT id FROM outbox
WHERE tenant_id = :tenant AND id = ANY(:ids) AND lease_token = ANY(:tokens)

-- name: key
-- Writes the key of a memory, or replaces it.
INSERT INTO memory_key (tenant_id, chunk_id, profile_id, bank_id, document_id, embedding)
VALUES (:tenant, :chunk, :profile, :bank, :document, cast(:embedding AS halfvec))
ON CONFLICT (tenant_id, chunk_id, profile_id) DO UPDATE
    SET embedding = excluded.embedding, encoded_at = now()

-- name: blob
-- Writes the blob of a memory, or the place of its object, or replaces it.
INSERT INTO memory_blob
    (tenant_id, chunk_id, profile_id, sha256, payload, key_version, location, size)
VALUES (:tenant, :chunk, :profile, :sha256, :payload, :version, :location, :size)
ON CONFLICT (tenant_id, chunk_id, profile_id) DO UPDATE SET sha256 = excluded.sha256,
    payload = excluded.payload, key_version = excluded.key_version,
    location = excluded.location, size = excluded.size
