-- Keys of principals. Only the program's functions look at hashes, and only for a key that is shown.
CREATE TABLE api_key (
    tenant_id    bigint NOT NULL,
    id           bigint GENERATED ALWAYS AS IDENTITY,
    principal_id bigint NOT NULL,
    name         text NOT NULL DEFAULT '' CHECK (length(name) <= 200),
    hash         bytea NOT NULL CHECK (length(hash) = 32),
    scopes       text[] NOT NULL CHECK (scopes <@ '{read,write,admin}' AND scopes <> '{}'),
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz NOT NULL,
    revoked_at   timestamptz,
    last_used_at timestamptz,
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, principal_id) REFERENCES principal (tenant_id, id) ON DELETE CASCADE
);
CREATE INDEX api_key_principal ON api_key (tenant_id, principal_id);
COMMENT ON TABLE api_key IS 'What a principal shows to a service to say who it is.';
COMMENT ON COLUMN api_key.hash IS 'sha256 of the secret, which has 256 random bits and is not kept.';
COMMENT ON COLUMN api_key.scopes IS
    'read: search and ask. write: ingest and forget. admin: lists, roles, groups, keys.';
COMMENT ON COLUMN api_key.last_used_at IS 'Written at most once a minute.';

CREATE TABLE bank_member (
    tenant_id bigint NOT NULL,
    bank_id   bigint NOT NULL,
    grantee   text NOT NULL CHECK (grantee ~ '^(everyone|(principal|group):.+)$'),
    role      text NOT NULL CHECK (role IN ('reader', 'writer', 'admin')),
    PRIMARY KEY (tenant_id, grantee, bank_id),  -- as current_banks() asks
    FOREIGN KEY (tenant_id, bank_id) REFERENCES bank (tenant_id, id) ON DELETE CASCADE
);
CREATE INDEX bank_member_bank ON bank_member (tenant_id, bank_id);
COMMENT ON TABLE bank_member IS
    'What a bank lets whom do. A bank without members is closed. Counts from the next question.';
COMMENT ON COLUMN bank_member.grantee IS 'everyone, principal:NAME or group:NAME, as in a list.';
COMMENT ON COLUMN bank_member.role IS
    'reader: reads what the documents'' lists allow. writer: also stores and forgets. admin: also'
    ' changes lists and roles.';
-- Banks were open to their tenant, and stay so until someone says otherwise. The owner, as whom a
-- migration runs, sees none of them while row-level security is forced.
ALTER TABLE bank NO FORCE ROW LEVEL SECURITY;
INSERT INTO bank_member (tenant_id, bank_id, grantee, role)
SELECT tenant_id, id, 'everyone', 'reader' FROM bank;
ALTER TABLE bank FORCE ROW LEVEL SECURITY;

DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['api_key', 'bank_member'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('REVOKE ALL ON %I FROM PUBLIC', t);
        EXECUTE format('CREATE POLICY administrator ON %I TO membank_admin'
            ' USING (true) WITH CHECK (true)', t);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO membank_admin', t);
        EXECUTE format('CREATE POLICY tenant_floor ON %I AS RESTRICTIVE'
            ' TO membank_app, membank_worker'
            ' USING (tenant_id = (SELECT current_tenant()))'
            ' WITH CHECK (tenant_id = (SELECT current_tenant()))', t);
    END LOOP;
END $$;
CREATE POLICY of_the_tenant ON bank_member FOR SELECT TO membank_app USING (true);
GRANT SELECT ON bank_member TO membank_app;
CREATE POLICY worker ON bank_member TO membank_worker USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON bank_member TO membank_worker;

-- Banks of which the asking principal may read anything.
CREATE FUNCTION current_banks() RETURNS bigint[]
LANGUAGE sql STABLE SET search_path = pg_catalog, public AS $$
    SELECT array_agg(DISTINCT bank_id) FROM bank_member
    WHERE tenant_id = (SELECT current_tenant()) AND grantee = ANY ((SELECT current_readers())::text[])
$$;
-- Both sides are computed once a statement. Chunks, keys and blobs follow their document.
ALTER POLICY reader ON document USING (
    access && (SELECT current_readers()) AND bank_id = ANY ((SELECT current_banks())::bigint[]));

-- Asked before a tenant is known. Even the owner, as whom it runs, sees only the one row whose
-- numbers it was given, and the caller learns of that one nothing without its secret. Comparing two
-- hashes under a fresh nonce takes as long whatever they have in common.
CREATE POLICY shown ON api_key TO membank_owner
    USING (tenant_id || '-' || id = current_setting('membank.shown_key', true));

CREATE FUNCTION find_key(tenant bigint, key bigint, shown bytea)
RETURNS TABLE (principal_id bigint, scopes text[], expires_at timestamptz, fault text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public AS $$
DECLARE
    nonce bytea := uuid_send(gen_random_uuid());
    known api_key;
BEGIN
    PERFORM set_config('membank.shown_key', tenant || '-' || key, true);
    SELECT * INTO known FROM api_key k WHERE k.tenant_id = tenant AND k.id = key;
    IF sha256(nonce || known.hash) = sha256(nonce || shown) THEN
        IF known.revoked_at IS NOT NULL THEN
            RETURN QUERY SELECT NULL::bigint, NULL::text[], known.expires_at, 'revoked';
        ELSIF known.expires_at <= now() THEN
            RETURN QUERY SELECT NULL::bigint, NULL::text[], known.expires_at, 'expired';
        ELSE
            IF coalesce(known.last_used_at < now() - interval '1 minute', true) THEN
                -- Whoever holds the row at this moment writes it, and nobody waits for that.
                PERFORM FROM api_key k WHERE k.tenant_id = tenant AND k.id = key
                    FOR NO KEY UPDATE SKIP LOCKED;
                IF FOUND THEN
                    UPDATE api_key k SET last_used_at = now()
                    WHERE k.tenant_id = tenant AND k.id = key;
                END IF;
            END IF;
            RETURN QUERY SELECT known.principal_id, known.scopes, known.expires_at, NULL::text;
        END IF;
    END IF;
    PERFORM set_config('membank.shown_key', '', true);
END $$;
COMMENT ON FUNCTION find_key IS
    'Whose key it is, what it may do, and what is wrong with it: expired or revoked. No row without'
    ' the sha256 of its secret.';
REVOKE ALL ON FUNCTION find_key FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_key TO membank_app;
