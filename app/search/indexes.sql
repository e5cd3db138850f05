-- name: counted
-- A tenant's banks and profiles with a given number of keys or more, and the keys' dimensions.
SELECT c.bank_id, c.profile_id, c.count, (
    SELECT vector_dims(k.embedding) FROM memory_key k
    WHERE k.tenant_id = :tenant AND k.bank_id = c.bank_id AND k.profile_id = c.profile_id
    LIMIT 1) AS dimensions
FROM (
    SELECT k.bank_id, k.profile_id, count(*) FROM memory_key k WHERE k.tenant_id = :tenant
    GROUP BY k.bank_id, k.profile_id HAVING count(*) >= :least) c
