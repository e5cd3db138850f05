CREATE OR REPLACE FUNCTION current_banks() RETURNS bigint[]
LANGUAGE sql STABLE SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT array_agg(DISTINCT bank_id) FROM bank_member
    WHERE tenant_id = (SELECT current_tenant()) AND grantee = ANY ((SELECT current_readers())::text[])
$$;
DROP INDEX document_served;
DROP INDEX document_rights;
