-- Who may read which document, in an index alone: gone through for a reader of few, looked into for
-- each key that another index brings. The second is of those whose chunks are of their present text.
CREATE INDEX document_rights ON document (tenant_id, bank_id, id) INCLUDE (access);
CREATE INDEX document_served ON document (tenant_id, bank_id, id) INCLUDE (access)
    WHERE revision = split_revision AND text_hash = content_hash;

-- As before, and of these only the bank that a search says it is of: the documents of a tenant's
-- other banks need not be gone through for it. The setting can hide rows, and show none.
CREATE OR REPLACE FUNCTION current_banks() RETURNS bigint[]
LANGUAGE sql STABLE SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT array_agg(DISTINCT bank_id) FROM bank_member
    WHERE tenant_id = (SELECT current_tenant()) AND grantee = ANY ((SELECT current_readers())::text[])
        AND bank_id = coalesce(nullif(current_setting('membank.searched', true), '')::bigint, bank_id)
$$;
