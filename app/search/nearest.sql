-- name: of_all
-- The keys of a bank nearest to a question, by comparing all of them or through an index.
-- nearest.py fills in the names in braces. Rights (by policy), staleness and filter are settled
-- before LIMIT, so that as many rows come back as may be read. Documents are joined after LIMIT:
-- otherwise the planner expects to find one of them and reads all keys again for each (250 ms
-- instead of 10 for 3,853 keys). For the same reason texts are looked up one by one: when joined,
-- all documents were gone through for each (40 ms for 12,500).
WITH near AS MATERIALIZED (
    SELECT k.chunk_id, k.document_id, {distance} AS distance
    FROM memory_key k
    WHERE k.tenant_id = :tenant AND k.bank_id = :bank AND k.profile_id = :profile
        AND k.document_id NOT IN (  -- hashed, however many there are
            SELECT d.id FROM document d WHERE d.tenant_id = :tenant AND d.bank_id = :bank
                AND (d.revision <> d.split_revision OR d.text_hash <> d.content_hash{unfit}))
    ORDER BY {order} LIMIT :size)

-- name: by_documents
-- The keys of a bank nearest to a question, found by going through the readable documents.
WITH fit AS MATERIALIZED (
    SELECT d.id FROM document d WHERE d.tenant_id = :tenant AND d.bank_id = :bank
        AND d.revision = d.split_revision AND d.text_hash = d.content_hash{fit}),
near AS MATERIALIZED (
    SELECT k.chunk_id, k.document_id, k.distance
    FROM fit CROSS JOIN LATERAL (  -- OFFSET keeps the planner from turning it round
        SELECT k.chunk_id, k.document_id, {distance} AS distance FROM memory_key k
        WHERE k.tenant_id = :tenant AND k.bank_id = :bank AND k.document_id = fit.id
            AND k.profile_id = :profile OFFSET 0) k
    ORDER BY {order} LIMIT :size)

-- name: with_texts
-- Follows either of these, and adds the texts of the nearest keys.
SELECT n.chunk_id, n.document_id, n.distance, d.title, d.source, c.text,
    c.heading, c.start_at, c.end_at, d.file_id
FROM near n
CROSS JOIN LATERAL (SELECT title, source, file_id FROM document WHERE tenant_id = :tenant
    AND bank_id = :bank AND id = n.document_id LIMIT 1) d
CROSS JOIN LATERAL (SELECT text, heading, start_at, end_at FROM chunk
    WHERE tenant_id = :tenant AND id = n.chunk_id LIMIT 1) c
ORDER BY n.distance + 0, n.chunk_id  -- the index's own order is a rough one

-- name: ready
-- Tells whether the bank has an index, and configures the search. Hardly any of a tenant's
-- documents are stale, but the planner assumes that all are, and would read every document instead
-- of using the index of stale ones. Where all keys of a bank are compared, rights are hashed once
-- (each_alone() in migrations/schema). An index may return a key that is nearer than those it
-- returned before, which strict_order would drop.
SELECT usable, set_config('enable_seqscan', 'off', true),
    set_config('membank.searched', :bank, true),
    set_config('membank.each_alone', CASE WHEN usable THEN 'on' ELSE 'off' END, true),
    set_config('hnsw.iterative_scan', 'relaxed_order', true),
    set_config('hnsw.ef_search', :list, true), set_config('hnsw.max_scan_tuples', :most, true)
FROM (SELECT coalesce((SELECT i.indisvalid FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid
    WHERE c.relname = :name AND c.relnamespace = 'public'::regnamespace), false) AS usable) u
