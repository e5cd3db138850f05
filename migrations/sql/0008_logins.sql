-- People of a tenant (membank_tenant) change documents and lists, so their triggers add events and
-- ask for the quota in their name. They see their tenant's limits and use; the log is not theirs.
DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['audit_event', 'tenant_key', 'tenant_quota', 'tenant_usage'] LOOP
        EXECUTE format('CREATE POLICY tenant_role_floor ON %I AS RESTRICTIVE TO membank_tenant'
            ' USING (tenant_id = (SELECT role_tenant()))'
            ' WITH CHECK (tenant_id = (SELECT role_tenant()))', t);
    END LOOP;
    FOREACH t IN ARRAY ARRAY['tenant_quota', 'tenant_usage'] LOOP
        EXECUTE format('CREATE POLICY tenant_role ON %I FOR SELECT TO membank_tenant'
            ' USING (true)', t);
        EXECUTE format('GRANT SELECT ON %I TO membank_tenant', t);
    END LOOP;
END $$;
CREATE POLICY tenant_role ON audit_event FOR INSERT TO membank_tenant WITH CHECK (true);
GRANT INSERT (tenant_id, action, bank_id, document_ids, chunk_ids, detail) ON audit_event
    TO membank_tenant;
-- The event's stamp asks which principal it is: none.
GRANT EXECUTE ON FUNCTION signed_context() TO membank_tenant;
