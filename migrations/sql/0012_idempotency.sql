-- What was answered to a request that may be sent again, so that it is done once.
CREATE TABLE idempotency_key (
    tenant_id    bigint NOT NULL,
    principal_id bigint NOT NULL,
    key          text NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    request_hash bytea NOT NULL CHECK (length(request_hash) = 32),
    status       smallint,
    body         bytea,
    created_at   timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, principal_id, key),
    CHECK ((status IS NULL) = (body IS NULL)),
    FOREIGN KEY (tenant_id, principal_id) REFERENCES principal (tenant_id, id) ON DELETE CASCADE
);
CREATE INDEX idempotency_key_age ON idempotency_key (tenant_id, created_at);
COMMENT ON TABLE idempotency_key IS
    'Requests under an Idempotency-Key. The relay deletes them after a day.';
COMMENT ON COLUMN idempotency_key.status IS 'Of the response. Null: it is being made.';
COMMENT ON COLUMN idempotency_key.body IS
    'The response, sealed under a key that the database does not have: it may show a secret.';

ALTER TABLE idempotency_key ENABLE ROW LEVEL SECURITY;
ALTER TABLE idempotency_key FORCE ROW LEVEL SECURITY;
REVOKE ALL ON idempotency_key FROM PUBLIC;
CREATE POLICY administrator ON idempotency_key TO membank_admin USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON idempotency_key TO membank_admin;
CREATE POLICY tenant_floor ON idempotency_key AS RESTRICTIVE TO membank_app, membank_worker
    USING (tenant_id = (SELECT current_tenant()))
    WITH CHECK (tenant_id = (SELECT current_tenant()));
CREATE POLICY tenant_role_floor ON idempotency_key AS RESTRICTIVE TO membank_tenant
    USING (tenant_id = (SELECT role_tenant())) WITH CHECK (tenant_id = (SELECT role_tenant()));
CREATE POLICY worker ON idempotency_key TO membank_worker USING (true) WITH CHECK (true);
GRANT SELECT, DELETE ON idempotency_key TO membank_worker;
-- Who asks reaches its own by these functions and in no other way.
CREATE POLICY asking ON idempotency_key TO membank_owner
    USING (tenant_id = (SELECT current_tenant()) AND principal_id = (SELECT current_principal()))
    WITH CHECK (tenant_id = (SELECT current_tenant())
        AND principal_id = (SELECT current_principal()));

CREATE FUNCTION idempotency_begin(shown text, hash bytea, seconds double precision)
RETURNS TABLE (began timestamptz, request_hash bytea, status smallint, body bytea)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
#variable_conflict use_column
DECLARE
    since timestamptz := clock_timestamp();
BEGIN
    INSERT INTO idempotency_key AS k (tenant_id, principal_id, key, request_hash, created_at)
    VALUES (current_tenant(), current_principal(), shown, hash, since)
    ON CONFLICT (tenant_id, principal_id, key) DO UPDATE SET
        request_hash = excluded.request_hash, status = NULL, body = NULL, created_at = since
    WHERE k.created_at < since - interval '1 day'
        OR (k.status IS NULL AND k.created_at < since - make_interval(secs => seconds));
    IF FOUND THEN
        RETURN QUERY SELECT since, NULL::bytea, NULL::smallint, NULL::bytea;
    ELSE
        RETURN QUERY SELECT NULL::timestamptz, k.request_hash, k.status, k.body
            FROM idempotency_key k WHERE k.tenant_id = current_tenant()
            AND k.principal_id = current_principal() AND k.key = shown;
    END IF;
END $$;
COMMENT ON FUNCTION idempotency_begin IS
    'Takes a key: when, or else what is known of the request that has it. One that has been made'
    ' for so many seconds without an end is taken to be lost.';

CREATE FUNCTION idempotency_end(shown text, since timestamptz, code integer, sealed bytea)
RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    UPDATE idempotency_key SET status = code, body = sealed
    WHERE tenant_id = current_tenant() AND principal_id = current_principal() AND key = shown
        AND created_at = since AND status IS NULL AND code IS NOT NULL;
    DELETE FROM idempotency_key
    WHERE tenant_id = current_tenant() AND principal_id = current_principal() AND key = shown
        AND created_at = since AND code IS NULL
$$;
COMMENT ON FUNCTION idempotency_end IS
    'Keeps the response of the request that took a key then; without a status the key is free.';
REVOKE ALL ON FUNCTION idempotency_begin, idempotency_end FROM PUBLIC;
GRANT EXECUTE ON FUNCTION idempotency_begin, idempotency_end TO membank_app;
