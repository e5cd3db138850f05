-- A memory's bytes may stand in an object store. Then its row says under which name.
ALTER TABLE memory_blob ALTER COLUMN payload DROP NOT NULL,
    ADD COLUMN location text,
    ADD COLUMN size bigint,
    ADD CONSTRAINT memory_blob_place
        CHECK ((payload IS NULL) = (location IS NOT NULL) AND (location IS NULL) = (size IS NULL)),
    -- Whatever a row is made to say, it names no object of another tenant.
    ADD CONSTRAINT memory_blob_own CHECK (location LIKE tenant_id || '/%');
COMMENT ON COLUMN memory_blob.payload IS 'The bytes; null where they are an object.';
COMMENT ON COLUMN memory_blob.location IS
    'Name of the object that holds them, TENANT/PROFILE/SHA256; null where they are here.';
COMMENT ON COLUMN memory_blob.size IS 'Bytes of the object.';
CREATE INDEX memory_blob_object ON memory_blob (tenant_id, location) WHERE location IS NOT NULL;

-- Objects that a row has let go of. No reference to the tenant: they outlive it.
CREATE TABLE object_gone (
    tenant_id bigint NOT NULL,
    id        bigint GENERATED ALWAYS AS IDENTITY,
    location  text NOT NULL,
    gone_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id)
);
COMMENT ON TABLE object_gone IS
    'Objects that a memory no longer needs. The relay removes each that no other memory needs.';
ALTER TABLE object_gone ENABLE ROW LEVEL SECURITY;
ALTER TABLE object_gone FORCE ROW LEVEL SECURITY;
REVOKE ALL ON object_gone FROM PUBLIC;
CREATE POLICY administrator ON object_gone TO membank_admin USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON object_gone TO membank_admin;
CREATE POLICY tenant_floor ON object_gone AS RESTRICTIVE TO membank_app, membank_worker
    USING (tenant_id = (SELECT current_tenant()))
    WITH CHECK (tenant_id = (SELECT current_tenant()));
CREATE POLICY tenant_role_floor ON object_gone AS RESTRICTIVE TO membank_tenant
    USING (tenant_id = (SELECT role_tenant())) WITH CHECK (tenant_id = (SELECT role_tenant()));
CREATE POLICY worker ON object_gone TO membank_worker USING (true) WITH CHECK (true);
GRANT SELECT, DELETE ON object_gone TO membank_worker;

-- Whoever deletes a document need not be able to write this: the trigger does, for nothing but the
-- rows that the statement changed.
CREATE POLICY of_triggers ON object_gone FOR INSERT TO membank_owner
    WITH CHECK ((SELECT pg_trigger_depth()) > 0);
CREATE POLICY of_triggers ON memory_blob FOR SELECT TO membank_owner
    USING (location IS NOT NULL AND (SELECT pg_trigger_depth()) > 0);

CREATE FUNCTION object_let_go() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    INSERT INTO object_gone (tenant_id, location) VALUES (OLD.tenant_id, OLD.location);
    RETURN NULL;
END $$;
CREATE TRIGGER object_let_go AFTER DELETE OR UPDATE OF location ON memory_blob
    FOR EACH ROW WHEN (OLD.location IS NOT NULL) EXECUTE FUNCTION object_let_go();

CREATE FUNCTION objects_let_go() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    INSERT INTO object_gone (tenant_id, location)
    SELECT tenant_id, location FROM memory_blob WHERE location IS NOT NULL;
    RETURN NULL;
END $$;
CREATE TRIGGER objects_let_go BEFORE TRUNCATE ON memory_blob
    FOR EACH STATEMENT EXECUTE FUNCTION objects_let_go();
REVOKE ALL ON FUNCTION object_let_go, objects_let_go FROM PUBLIC;
ALTER TABLE memory_blob ENABLE ALWAYS TRIGGER object_let_go;
ALTER TABLE memory_blob ENABLE ALWAYS TRIGGER objects_let_go;

-- The relay asks before it has a tenant, and a tenant may be gone by then: ids.
CREATE POLICY found_with_objects ON object_gone FOR SELECT TO membank_owner USING (true);
CREATE FUNCTION gone_tenants() RETURNS SETOF bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT DISTINCT tenant_id FROM object_gone ORDER BY 1
$$;
REVOKE ALL ON FUNCTION gone_tenants() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION gone_tenants() TO membank_worker, membank_admin;
