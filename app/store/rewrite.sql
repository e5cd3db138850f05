-- name: replace
-- Replaces the bytes of a row, unless somebody else has meanwhile.
UPDATE memory_blob SET payload = :payload, sha256 = :sha256, location = :location, size = :size,
    key_version = coalesce(:key_version, key_version)
WHERE tenant_id = :tenant AND chunk_id = :chunk AND profile_id = :profile
    AND sha256 = :old_sha256 AND location IS NOT DISTINCT FROM :old_location
