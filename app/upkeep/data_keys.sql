-- name: status
-- Every tenant, the versions of its key, and how many memories each seals.
SELECT t.name AS tenant, t.id AS tenant_id, k.version, k.id, k.created_at, k.destroyed_at,
       (SELECT count(*) FROM memory_blob b WHERE b.tenant_id = t.id
            AND b.key_version = k.version) AS blobs,
       (SELECT count(*) FROM memory_blob b WHERE b.tenant_id = t.id
            AND b.key_version IS NULL) AS plain
FROM tenant t LEFT JOIN tenant_key k ON k.tenant_id = t.id ORDER BY t.name, k.version
