ALTER POLICY reader ON memory_key USING (EXISTS (SELECT FROM document d
    WHERE d.tenant_id = memory_key.tenant_id AND d.bank_id = memory_key.bank_id
    AND d.id = memory_key.document_id));
DROP FUNCTION each_alone();
DROP INDEX memory_key_document;
-- Indexes of large banks, which searches of an earlier version do not use.
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT relname FROM pg_class WHERE relkind = 'i' AND relname LIKE 'memory\_key\_near\_%'
        AND relnamespace = 'public'::regnamespace
    LOOP
        EXECUTE format('DROP INDEX %I', name);
    END LOOP;
END $$;
