-- To the keys of a few documents: a reader whose list leaves little of a large bank, a strict filter.
CREATE INDEX memory_key_document ON memory_key (tenant_id, bank_id, document_id);

-- One right, asked in two ways. A search that goes through all keys of a bank hashes the documents
-- that may be read, once. One that takes keys from an index, nearest first, sees a hundred of them
-- and must not read ten thousand documents for that: it looks up each key's document. Only a
-- scalar subquery keeps the planner from hashing it, and only the search knows which it is.
CREATE FUNCTION each_alone() RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(current_setting('membank.each_alone', true), '') = 'on'
$$;
COMMENT ON FUNCTION each_alone IS
    'How rights are looked up in this transaction, not which: key by key where it is true.';
ALTER POLICY reader ON memory_key USING (CASE WHEN (SELECT each_alone())
    THEN (SELECT true FROM document d WHERE d.tenant_id = memory_key.tenant_id
        AND d.bank_id = memory_key.bank_id AND d.id = memory_key.document_id)
    ELSE EXISTS (SELECT FROM document d WHERE d.tenant_id = memory_key.tenant_id
        AND d.bank_id = memory_key.bank_id AND d.id = memory_key.document_id) END);
