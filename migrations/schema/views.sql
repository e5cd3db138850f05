-- What people and the service look at. Each reads with the rights of who asks (security_invoker),
-- so that policies bind them as on the tables.

CREATE VIEW document_status WITH (security_invoker = true) AS
SELECT d.tenant_id, d.bank_id, d.id, d.source, d.revision,
       CASE
           WHEN l.failed > 0 THEN 'failed'
           -- Nobody will do what is missing: it was discarded, or deleted by hand.
           WHEN o.waiting = 0 AND (d.revision <> d.split_revision OR c.memories < c.chunks)
               THEN 'failed'
           WHEN o.waiting = 0 THEN 'ready'
           WHEN o.held > 0 THEN 'encoding'
           ELSE 'pending'
       END AS status,
       greatest(o.attempts, l.attempts, 0) AS attempts, o.next_try,
       coalesce(l.last_error, o.last_error) AS last_error, now() - o.since AS staleness,
       c.memories / nullif(c.chunks, 0)::float8 AS coverage
FROM document d
JOIN bank b ON b.tenant_id = d.tenant_id AND b.id = d.bank_id
CROSS JOIN LATERAL (
    SELECT count(*) AS waiting, count(*) FILTER (WHERE lease_until > now()) AS held,
           max(attempts) AS attempts, min(created_at) AS since,
           min(not_before) FILTER (WHERE lease_until IS NULL OR lease_until <= now()) AS next_try,
           max(last_error) AS last_error
    FROM outbox WHERE tenant_id = d.tenant_id AND bank_id = d.bank_id AND document_id = d.id
        AND (chunk_id IS NULL OR profile_id = b.profile_id)
) o
CROSS JOIN LATERAL (
    SELECT count(*) AS failed, max(attempts) AS attempts,
           (array_agg(error ORDER BY id DESC))[1] AS last_error
    FROM dead_letter WHERE tenant_id = d.tenant_id AND bank_id = d.bank_id AND document_id = d.id
        AND (chunk_id IS NULL OR profile_id = b.profile_id) AND NOT discarded
) l
CROSS JOIN LATERAL (
    SELECT count(*) AS chunks, count(k.chunk_id) AS memories
    FROM chunk LEFT JOIN memory_key k ON k.tenant_id = chunk.tenant_id AND k.chunk_id = chunk.id
        AND k.profile_id = b.profile_id
    WHERE chunk.tenant_id = d.tenant_id AND chunk.bank_id = d.bank_id
        AND chunk.document_id = d.id
) c;
COMMENT ON VIEW document_status IS 'How far each document is encoded under its bank''s profile.';
COMMENT ON COLUMN document_status.status IS
    'pending: work waits. encoding: a worker holds some. ready: all is done. failed: some is given up.';
COMMENT ON COLUMN document_status.attempts IS 'Most attempts at one piece of its open work.';
COMMENT ON COLUMN document_status.next_try IS 'When the first of its waiting work is due.';
COMMENT ON COLUMN document_status.last_error IS 'Why it failed for good, else last time.';
COMMENT ON COLUMN document_status.staleness IS 'Age of its oldest work that is not done.';
COMMENT ON COLUMN document_status.coverage IS
    'Part of its chunks that have a memory, 0 to 1; null while it has no chunks.';

CREATE VIEW bank_status WITH (security_invoker = true) AS
SELECT b.tenant_id, t.name AS tenant, b.id AS bank_id, b.name AS bank, b.profile_id,
       (SELECT count(*) FROM document d
        WHERE d.tenant_id = b.tenant_id AND d.bank_id = b.id) AS documents,
       c.chunks, k.memories, o.pending, l.failed, t.paused,
       greatest(o.attempts, l.attempts, 0) AS attempts, o.next_try,
       coalesce(l.last_error, o.last_error) AS last_error, now() - o.since AS staleness,
       k.memories / nullif(c.chunks, 0)::float8 AS coverage,
       b.next_profile_id, k.memories_next, o.pending_next, l.failed_next,
       now() - o.since_next AS staleness_next, b.switched_at, k.throughput,
       make_interval(secs => (o.pending + o.pending_next) / nullif(k.throughput, 0)) AS time_left
FROM bank b
JOIN tenant t ON t.id = b.tenant_id
CROSS JOIN LATERAL (
    SELECT count(*) AS chunks FROM chunk WHERE tenant_id = b.tenant_id AND bank_id = b.id
) c
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE profile_id = b.profile_id) AS memories,
           count(*) FILTER (WHERE profile_id = b.next_profile_id) AS memories_next,
           count(*) FILTER (WHERE encoded_at > now() - interval '1 minute') / 60.0::float8
               AS throughput
    FROM memory_key WHERE tenant_id = b.tenant_id AND bank_id = b.id
        AND profile_id IN (b.profile_id, b.next_profile_id)
) k
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE ours) AS pending, max(attempts) FILTER (WHERE ours) AS attempts,
           min(created_at) FILTER (WHERE ours) AS since,
           min(not_before) FILTER (WHERE ours AND (lease_until IS NULL OR lease_until <= now()))
               AS next_try,
           max(last_error) FILTER (WHERE ours) AS last_error,
           count(*) FILTER (WHERE theirs) AS pending_next,
           min(created_at) FILTER (WHERE theirs) AS since_next
    FROM (SELECT attempts, created_at, not_before, lease_until, last_error,
              chunk_id IS NULL OR profile_id = b.profile_id AS ours,
              chunk_id IS NOT NULL AND profile_id = b.next_profile_id AS theirs
          FROM outbox WHERE tenant_id = b.tenant_id AND bank_id = b.id) w
) o
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE ours) AS failed, max(attempts) FILTER (WHERE ours) AS attempts,
           (array_agg(error ORDER BY id DESC) FILTER (WHERE ours))[1] AS last_error,
           count(*) FILTER (WHERE profile_id = b.next_profile_id) AS failed_next
    FROM (SELECT id, attempts, error, profile_id,
              chunk_id IS NULL OR profile_id = b.profile_id AS ours
          FROM dead_letter WHERE tenant_id = b.tenant_id AND bank_id = b.id AND NOT discarded) f
) l;
COMMENT ON VIEW bank_status IS 'How far each bank is encoded.';
COMMENT ON COLUMN bank_status.memories IS 'Chunks encoded under the bank''s profile.';
COMMENT ON COLUMN bank_status.pending IS
    'Rows of the outbox that the bank''s profile waits for, held by a worker or not.';
COMMENT ON COLUMN bank_status.failed IS
    'Rows of dead_letter that are not discarded, of splits and of the bank''s profile.';
COMMENT ON COLUMN bank_status.paused IS 'Whether workers leave the tenant''s work alone.';
COMMENT ON COLUMN bank_status.attempts IS 'Most attempts at one piece of its open work.';
COMMENT ON COLUMN bank_status.next_try IS 'When the first of its waiting work is due.';
COMMENT ON COLUMN bank_status.last_error IS
    'Why something failed for good, the latest of them; else why something failed last time.';
COMMENT ON COLUMN bank_status.staleness IS 'Age of its oldest work that is not done.';
COMMENT ON COLUMN bank_status.coverage IS
    'Part of its chunks that have a memory, 0 to 1; null while it has no chunks.';
COMMENT ON COLUMN bank_status.next_profile_id IS
    'Profile that the bank is being encoded under and will be switched to. Null: none.';
COMMENT ON COLUMN bank_status.memories_next IS 'Chunks encoded under the next profile.';
COMMENT ON COLUMN bank_status.pending_next IS 'Rows of the outbox for the next profile.';
COMMENT ON COLUMN bank_status.failed_next IS
    'Rows of dead_letter for the next profile. While there are any, the bank is not switched.';
COMMENT ON COLUMN bank_status.staleness_next IS 'Age of its oldest work for the next profile.';
COMMENT ON COLUMN bank_status.switched_at IS 'When its profile last changed. Null: never.';
COMMENT ON COLUMN bank_status.throughput IS 'Memories a second, over the last minute.';
COMMENT ON COLUMN bank_status.time_left IS
    'Until all that waits is encoded, at that throughput. Null while nothing is encoded.';

CREATE VIEW job WITH (security_invoker = true) AS
SELECT j.tenant_id, t.name AS tenant, j.bank_id, b.name AS bank, j.document_id, j.chunk_id,
       j.state, j.priority, j.attempts, j.next_try, j.last_error, j.since, j.profile_id, j.file_id
FROM (
    SELECT tenant_id, bank_id, document_id, chunk_id,
           CASE WHEN lease_until > now() THEN 'encoding' ELSE 'pending' END AS state,
           priority, attempts,
           CASE WHEN lease_until > now() THEN NULL ELSE not_before END AS next_try,
           last_error, created_at AS since, profile_id, file_id
    FROM outbox
    UNION ALL
    SELECT tenant_id, bank_id, document_id, chunk_id, 'failed', NULL, attempts, NULL, error,
           failed_at, profile_id, NULL
    FROM dead_letter WHERE NOT discarded
) j
JOIN tenant t ON t.id = j.tenant_id
JOIN bank b ON b.tenant_id = j.tenant_id AND b.id = j.bank_id;
COMMENT ON VIEW job IS 'Work that waits, is held by a worker, or has failed for good.';
COMMENT ON COLUMN job.chunk_id IS 'The chunk to encode; null where the document is to be split.';
COMMENT ON COLUMN job.state IS
    'pending: waits. encoding: a worker holds it. failed: in dead_letter, nobody tries it again.';
COMMENT ON COLUMN job.priority IS 'Higher goes first within the tenant.';
COMMENT ON COLUMN job.attempts IS 'How often a worker has begun it.';
COMMENT ON COLUMN job.next_try IS 'Not before then. Null while it is held or after it has failed.';
COMMENT ON COLUMN job.last_error IS 'Why the last attempt failed; cancelled if someone did that.';
COMMENT ON COLUMN job.since IS 'Waiting or held: when it was queued. Failed: when it failed.';
COMMENT ON COLUMN job.profile_id IS
    'Only workers of this profile take it. Null where splitting has failed.';
COMMENT ON COLUMN job.file_id IS
    'The uploaded file whose documents are to be stored; the document is null then.';

-- COPY refuses tables with row-level security, but not a view whose trigger takes the rows. The
-- view keeps nothing, so there is nothing to read, to empty or to forget.
CREATE VIEW document_load WITH (security_invoker = true) AS
SELECT NULL::text AS tenant, NULL::text AS bank, NULL::text AS id, NULL::text AS text,
       NULL::text AS title, NULL::text AS source, NULL::text[] AS access, NULL::jsonb AS metadata
WHERE false;
COMMENT ON VIEW document_load IS
    'COPY or INSERT documents here, by names: new ones are made, existing ones changed. Always empty.';
COMMENT ON COLUMN document_load.title IS 'Default: the id, or what an existing document has.';
COMMENT ON COLUMN document_load.source IS 'Default: the id, or what an existing document has.';
COMMENT ON COLUMN document_load.access IS 'Default: {everyone}, or what an existing document has.';
COMMENT ON COLUMN document_load.metadata IS 'Default: {}, or what an existing document has.';

CREATE VIEW bank_entry WITH (security_invoker = true) AS
WITH work AS NOT MATERIALIZED (
    SELECT d.tenant_id, d.bank_id, d.id, d.file_id, d.created_at, d.metadata,
           d.revision <> d.split_revision OR EXISTS (
               SELECT FROM outbox o WHERE o.tenant_id = d.tenant_id AND o.bank_id = d.bank_id
               AND o.document_id = d.id
               AND (o.chunk_id IS NULL OR o.profile_id = b.profile_id)) AS waiting,
           (SELECT l.error FROM dead_letter l WHERE l.tenant_id = d.tenant_id
               AND l.bank_id = d.bank_id AND l.document_id = d.id
               AND (l.chunk_id IS NULL OR l.profile_id = b.profile_id)
               ORDER BY l.error = 'cancelled', l.id DESC LIMIT 1) AS error
    FROM document d JOIN bank b ON b.tenant_id = d.tenant_id AND b.id = d.bank_id
)
SELECT e.tenant_id, e.bank_id, e.file_id, e.document_id, e.batch_id, e.created_at, e.attributes,
       CASE WHEN e.state = 'storing' THEN 'in_progress'
            WHEN e.state <> 'stored' THEN e.state
            WHEN e.lost <> 'cancelled' THEN 'failed'
            WHEN e.lost IS NOT NULL THEN 'cancelled'
            WHEN e.waiting THEN 'in_progress'
            ELSE 'completed' END AS status,
       CASE WHEN e.state = 'stored' AND e.lost <> 'cancelled' THEN e.lost
            ELSE e.error END AS error,
       coalesce(e.error_code, 'server_error') AS error_code
FROM (
    SELECT f.tenant_id, f.bank_id, f.file_id, NULL AS document_id, f.batch_id, f.created_at,
           f.attributes, f.state, f.error_code, f.error, w.waiting, w.lost
    FROM bank_file f
    CROSS JOIN LATERAL (
        SELECT bool_or(waiting) AS waiting,
               (array_agg(error ORDER BY error = 'cancelled') FILTER (WHERE error IS NOT NULL))[1]
                   AS lost
        FROM work WHERE work.tenant_id = f.tenant_id AND work.bank_id = f.bank_id
            AND work.file_id = f.file_id
    ) w
    UNION ALL
    SELECT tenant_id, bank_id, NULL, id, NULL, created_at, metadata, 'stored', NULL, NULL,
           waiting, error
    FROM work WHERE file_id IS NULL
) e;
COMMENT ON VIEW bank_entry IS
    'A bank''s files and, as files of their own, documents that came in another way; how far each is.';
COMMENT ON COLUMN bank_entry.document_id IS 'Set where it is not an uploaded file.';
COMMENT ON COLUMN bank_entry.status IS
    'in_progress, completed, failed (some of it, or all) or cancelled.';
