-- Who did what, without any text. No reference to tenant: that it was erased is told after it.
CREATE TABLE audit_event (
    tenant_id    bigint NOT NULL,
    id           bigint GENERATED ALWAYS AS IDENTITY,
    at           timestamptz NOT NULL,
    principal_id bigint,
    actor        text NOT NULL,
    action       text NOT NULL CHECK (length(action) BETWEEN 1 AND 40),
    bank_id      bigint,
    document_ids text[] NOT NULL DEFAULT '{}',
    chunk_ids    bigint[] NOT NULL DEFAULT '{}',
    detail       jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX audit_event_at ON audit_event (tenant_id, at);
COMMENT ON TABLE audit_event IS
    'Who did what. Rows are only added: not even an administrator changes or deletes one.';
COMMENT ON COLUMN audit_event.actor IS
    'Name of the principal; where there is none, the role that was logged in.';
COMMENT ON COLUMN audit_event.chunk_ids IS 'Memories that entered an answer or were found.';

ALTER TABLE audit_event ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit_event FORCE ROW LEVEL SECURITY;
REVOKE ALL ON audit_event FROM PUBLIC;
CREATE POLICY tenant_floor ON audit_event AS RESTRICTIVE TO membank_app, membank_worker
    USING (tenant_id = (SELECT current_tenant()))
    WITH CHECK (tenant_id = (SELECT current_tenant()));
CREATE POLICY writer ON audit_event FOR INSERT
    TO membank_app, membank_worker, membank_admin WITH CHECK (true);
CREATE POLICY administrator ON audit_event FOR SELECT TO membank_admin USING (true);
GRANT INSERT (tenant_id, action, bank_id, document_ids, chunk_ids, detail) ON audit_event
    TO membank_app, membank_worker, membank_admin;
GRANT SELECT ON audit_event TO membank_admin;
-- The functions below run as the owner, which sees the events of the tenant they were called for.
-- It also adds: triggers run as the owner where a deletion cascades.
CREATE POLICY cleared ON audit_event TO membank_owner
    USING (tenant_id::text = current_setting('membank.cleared_audit', true));
CREATE POLICY added ON audit_event FOR INSERT TO membank_owner WITH CHECK (true);

-- When and who are not for the writer to say.
CREATE FUNCTION audit_stamp() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    NEW.at := clock_timestamp();
    NEW.principal_id := current_principal();
    NEW.actor := coalesce((SELECT p.name FROM principal p
        WHERE p.tenant_id = NEW.tenant_id AND p.id = NEW.principal_id), session_user);
    RETURN NEW;
END $$;
CREATE TRIGGER audit_stamp BEFORE INSERT ON audit_event
    FOR EACH ROW EXECUTE FUNCTION audit_stamp();

-- Grants say the same. This holds also where someone grants too much, and against a superuser.
CREATE FUNCTION audit_is_final() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP = 'DELETE' AND current_user = 'membank_owner' THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION 'the audit log is only added to' USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER audit_is_final BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_event
    FOR EACH STATEMENT EXECUTE FUNCTION audit_is_final();
ALTER TABLE audit_event ENABLE ALWAYS TRIGGER audit_stamp;
ALTER TABLE audit_event ENABLE ALWAYS TRIGGER audit_is_final;

CREATE FUNCTION audit_expire(tenant bigint, days integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    gone bigint;
BEGIN
    IF days IS NULL OR days < 30 THEN
        RAISE EXCEPTION 'events of the last 30 days are kept' USING ERRCODE = 'restrict_violation';
    END IF;
    PERFORM set_config('membank.cleared_audit', tenant::text, true);
    DELETE FROM audit_event e WHERE e.tenant_id = tenant AND e.id IN (
        SELECT o.id FROM audit_event o
        WHERE o.tenant_id = tenant AND o.at < now() - make_interval(days => days)
        ORDER BY o.at LIMIT 10000);
    GET DIAGNOSTICS gone = ROW_COUNT;
    PERFORM set_config('membank.cleared_audit', '', true);
    RETURN gone;
END $$;
COMMENT ON FUNCTION audit_expire IS
    'Deletes up to 10,000 of a tenant''s events older than so many days, 30 or more. How many.';

-- Events name people and documents, so they go with their tenant. What stays is the receipt.
CREATE FUNCTION audit_erase(tenant bigint, receipt jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM tenant t WHERE t.id = tenant) THEN
        RAISE EXCEPTION 'tenant % exists', tenant USING ERRCODE = 'restrict_violation';
    END IF;
    PERFORM set_config('membank.cleared_audit', tenant::text, true);
    DELETE FROM audit_event e WHERE e.tenant_id = tenant AND e.action <> 'erase';
    PERFORM set_config('membank.cleared_audit', '', true);
    INSERT INTO audit_event (tenant_id, action, detail) VALUES (tenant, 'erase', receipt);
END $$;
COMMENT ON FUNCTION audit_erase IS
    'For a tenant that is deleted: its events go, the receipt is noted.';
REVOKE ALL ON FUNCTION audit_expire, audit_erase FROM PUBLIC;
GRANT EXECUTE ON FUNCTION audit_expire TO membank_worker, membank_admin;
GRANT EXECUTE ON FUNCTION audit_erase TO membank_admin;

-- Documents, by whatever way they come and go. One event a statement, bank and kind of change.
CREATE FUNCTION audit_ingest() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    INSERT INTO audit_event (tenant_id, action, bank_id, document_ids, detail)
    SELECT tenant_id, 'ingest', bank_id, array_agg(id ORDER BY id), '{"new": true}'
    FROM added GROUP BY tenant_id, bank_id;
    RETURN NULL;
END $$;
CREATE TRIGGER audit_ingest AFTER INSERT ON document
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION audit_ingest();

CREATE FUNCTION audit_change() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    INSERT INTO audit_event (tenant_id, action, bank_id, document_ids, detail)
    SELECT n.tenant_id, 'access', n.bank_id, array_agg(n.id ORDER BY n.id),
           jsonb_build_object('was', to_jsonb(o.access), 'is', to_jsonb(n.access))
    FROM changed n JOIN known o USING (tenant_id, bank_id, id)
    WHERE n.access <> o.access GROUP BY n.tenant_id, n.bank_id, o.access, n.access;
    -- Without the old row, it was renamed.
    INSERT INTO audit_event (tenant_id, action, bank_id, document_ids, detail)
    SELECT n.tenant_id, 'ingest', n.bank_id, array_agg(n.id ORDER BY n.id),
           jsonb_build_object('new', o.id IS NULL)
    FROM changed n LEFT JOIN known o USING (tenant_id, bank_id, id)
    WHERE n.revision IS DISTINCT FROM o.revision GROUP BY n.tenant_id, n.bank_id, o.id IS NULL;
    RETURN NULL;
END $$;
CREATE TRIGGER audit_change AFTER UPDATE ON document
    REFERENCING OLD TABLE AS known NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION audit_change();

CREATE FUNCTION audit_forget() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    INSERT INTO audit_event (tenant_id, action, bank_id, document_ids)
    SELECT tenant_id, 'forget', bank_id, array_agg(id ORDER BY id)
    FROM gone GROUP BY tenant_id, bank_id;
    RETURN NULL;
END $$;
CREATE TRIGGER audit_forget AFTER DELETE ON document
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION audit_forget();

CREATE FUNCTION audit_empty() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    INSERT INTO audit_event (tenant_id, action, bank_id, detail)
    SELECT tenant_id, 'forget', bank_id, jsonb_build_object('truncated', count(*))
    FROM document GROUP BY tenant_id, bank_id;
    RETURN NULL;
END $$;
CREATE TRIGGER audit_empty BEFORE TRUNCATE ON document
    FOR EACH STATEMENT EXECUTE FUNCTION audit_empty();

-- Rights, with what was and what is; of a key never its hash.
CREATE FUNCTION audit_right() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    hidden text[] := '{tenant_id,hash,last_used_at}';
    was jsonb := CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) - hidden END;
    now_is jsonb := CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) - hidden END;
BEGIN
    IF was IS DISTINCT FROM now_is THEN
        INSERT INTO audit_event (tenant_id, action, bank_id, detail)
        VALUES (CASE WHEN TG_OP = 'DELETE' THEN OLD.tenant_id ELSE NEW.tenant_id END,
            TG_ARGV[0], (coalesce(now_is, was) ->> 'bank_id')::bigint,
            jsonb_strip_nulls(jsonb_build_object('was', was, 'is', now_is)));
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER audit_right AFTER INSERT OR UPDATE OR DELETE ON bank_member
    FOR EACH ROW EXECUTE FUNCTION audit_right('role');
CREATE TRIGGER audit_right AFTER INSERT OR UPDATE OR DELETE ON group_member
    FOR EACH ROW EXECUTE FUNCTION audit_right('group');
CREATE TRIGGER audit_right AFTER INSERT OR DELETE
    OR UPDATE OF principal_id, hash, scopes, expires_at, revoked_at ON api_key
    FOR EACH ROW EXECUTE FUNCTION audit_right('key');

ALTER TABLE document ENABLE ALWAYS TRIGGER audit_ingest;
ALTER TABLE document ENABLE ALWAYS TRIGGER audit_change;
ALTER TABLE document ENABLE ALWAYS TRIGGER audit_forget;
ALTER TABLE document ENABLE ALWAYS TRIGGER audit_empty;
ALTER TABLE bank_member ENABLE ALWAYS TRIGGER audit_right;
ALTER TABLE group_member ENABLE ALWAYS TRIGGER audit_right;
ALTER TABLE api_key ENABLE ALWAYS TRIGGER audit_right;
