-- name: waiting
-- The tenants that are not paused, and their profiles, that have due work.
-- They are found by skipping through the index from one to the next, whatever number of rows each
-- has. LATERAL with LIMIT, because an EXISTS may be turned into a join that reads the whole outbox.
WITH RECURSIVE pair AS (
    (SELECT tenant_id, profile_id FROM outbox ORDER BY tenant_id, profile_id LIMIT 1)
    UNION ALL
    SELECT o.tenant_id, o.profile_id FROM pair p CROSS JOIN LATERAL (
        SELECT tenant_id, profile_id FROM outbox
        WHERE (tenant_id, profile_id) > (p.tenant_id, p.profile_id)
        ORDER BY tenant_id, profile_id LIMIT 1) o
), waiting AS (
    SELECT p.tenant_id, p.profile_id FROM pair p CROSS JOIN LATERAL (
        SELECT FROM outbox
        WHERE tenant_id = p.tenant_id AND profile_id = p.profile_id
            AND not_before <= now() AND (lease_until IS NULL OR lease_until < now())
        ORDER BY priority DESC, chunk_id NULLS FIRST, id LIMIT 1) o
    WHERE p.profile_id = coalesce(cast(:profile AS text), p.profile_id)
        AND p.tenant_id NOT IN (SELECT paused_tenants())
)

-- name: profiles
-- The profiles of what waits; stands after `waiting`.
SELECT DISTINCT profile_id FROM waiting

-- name: claim
-- Leases each tenant's first rows, in the index's order, the same number for each; stands after
-- `waiting`.
, turn AS (
    SELECT tenant_id, row_number() OVER (ORDER BY random()) AS place, count(*) OVER () AS tenants
    FROM waiting
), picked AS (
    SELECT o.tenant_id, o.id FROM turn CROSS JOIN LATERAL (
        SELECT tenant_id, id FROM outbox
        WHERE tenant_id = turn.tenant_id AND profile_id = :profile
            AND not_before <= now() AND (lease_until IS NULL OR lease_until < now())
        ORDER BY priority DESC, chunk_id NULLS FIRST, id
        LIMIT greatest(1, :count / turn.tenants)
        FOR UPDATE SKIP LOCKED) o
    WHERE turn.place <= :count
)
UPDATE outbox o SET lease_token = :token, attempts = attempts + 1,
    lease_until = now() + make_interval(secs => :seconds)
-- As arrays: a join reads the whole outbox, because the planner cannot know the LIMIT above.
WHERE o.tenant_id = ANY(ARRAY(SELECT tenant_id FROM picked))
    AND o.id = ANY(ARRAY(SELECT id FROM picked))
RETURNING o.tenant_id, o.id, o.bank_id, coalesce(o.document_id, '') AS document_id, o.chunk_id,
    o.revision, o.attempts, o.file_id

-- name: put_back
-- Makes a failed row due again after a delay that doubles with each attempt, up to a minute.
UPDATE outbox SET lease_token = NULL, lease_until = NULL, last_error = :error,
    not_before = now()
        + make_interval(secs => least(60, 0.5 * 2 ^ attempts) * (0.5 + random()))
WHERE tenant_id = :tenant AND id = :id AND lease_token = :token

-- name: bury
-- Notes work that was given up, with its error.
INSERT INTO dead_letter (tenant_id, bank_id, document_id, chunk_id, profile_id, attempts, error,
    traceback)
VALUES (:tenant, :bank, :document, :chunk, :profile, :attempts, :error, :traceback)
