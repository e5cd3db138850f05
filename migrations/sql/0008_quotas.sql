-- What a tenant may hold, and ask in a day.
CREATE TABLE tenant_quota (
    tenant_id bigint PRIMARY KEY REFERENCES tenant ON DELETE CASCADE,
    documents bigint CHECK (documents >= 0),
    bytes     bigint CHECK (bytes >= 0),
    requests  bigint CHECK (requests >= 0),
    tokens    bigint CHECK (tokens >= 0)
);
COMMENT ON TABLE tenant_quota IS 'Limits of a tenant. Null, or no row: none.';
COMMENT ON COLUMN tenant_quota.bytes IS 'Of memories, as they are stored.';
COMMENT ON COLUMN tenant_quota.requests IS 'Questions and searches of a day.';
COMMENT ON COLUMN tenant_quota.tokens IS 'Tokens of prompts and answers of a day.';

CREATE TABLE tenant_usage (
    tenant_id bigint NOT NULL REFERENCES tenant ON DELETE CASCADE,
    day       date NOT NULL,
    requests  bigint NOT NULL DEFAULT 0,
    tokens    bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant_id, day)
) WITH (fillfactor = 50);
COMMENT ON TABLE tenant_usage IS 'What a tenant asked on a day, by UTC.';

DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['tenant_quota', 'tenant_usage'] LOOP
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
CREATE POLICY of_the_tenant ON tenant_quota FOR SELECT TO membank_app, membank_worker USING (true);
GRANT SELECT ON tenant_quota TO membank_app, membank_worker;
CREATE POLICY of_the_tenant ON tenant_usage FOR SELECT TO membank_app USING (true);
GRANT SELECT ON tenant_usage TO membank_app;
-- Who asks counts by these functions and in no other way. They run as the owner, which sees what
-- belongs to the tenant that asks.
CREATE POLICY counter ON tenant_usage TO membank_owner
    USING (tenant_id = (SELECT current_tenant()))
    WITH CHECK (tenant_id = (SELECT current_tenant()));
CREATE POLICY counter ON tenant_quota FOR SELECT TO membank_owner
    USING (tenant_id = (SELECT current_tenant()));

-- Two at the same time wait for each other at the row of the day, so that none is one too many.
CREATE FUNCTION request_begin() RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    most_requests bigint;
    most_tokens bigint;
BEGIN
    SELECT requests, tokens INTO most_requests, most_tokens FROM tenant_quota
    WHERE tenant_id = current_tenant();
    INSERT INTO tenant_usage AS u (tenant_id, day, requests)
    SELECT current_tenant(), (now() AT TIME ZONE 'UTC')::date, 1
    WHERE coalesce(most_requests, 1) > 0 AND coalesce(most_tokens, 1) > 0
    ON CONFLICT (tenant_id, day) DO UPDATE SET requests = u.requests + 1
    WHERE (most_requests IS NULL OR u.requests < most_requests)
        AND (most_tokens IS NULL OR u.tokens < most_tokens);
    RETURN FOUND;
END $$;
COMMENT ON FUNCTION request_begin IS
    'Counts a question of the tenant that asks. False, and not counted: the day''s are used up.';

CREATE FUNCTION request_end(used bigint) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    INSERT INTO tenant_usage AS u (tenant_id, day, tokens)
    VALUES (current_tenant(), (now() AT TIME ZONE 'UTC')::date, greatest(used, 0))
    ON CONFLICT (tenant_id, day) DO UPDATE SET tokens = u.tokens + excluded.tokens
$$;
COMMENT ON FUNCTION request_end IS 'Counts the tokens that a question took.';
REVOKE ALL ON FUNCTION request_begin, request_end FROM PUBLIC;
GRANT EXECUTE ON FUNCTION request_begin, request_end TO membank_app;

-- Counted only where there is a limit, and no further than it. Whoever stores at the same time does
-- not see the other's document yet, so both may pass.
CREATE FUNCTION document_quota() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    over record;
BEGIN
    SELECT t.name, q.documents, a.new INTO over
    FROM (SELECT tenant_id, count(*) AS new FROM added GROUP BY tenant_id) a
    JOIN tenant_quota q ON q.tenant_id = a.tenant_id AND q.documents IS NOT NULL
    JOIN tenant t ON t.id = a.tenant_id
    WHERE (SELECT count(*) FROM (SELECT FROM document d WHERE d.tenant_id = a.tenant_id
        LIMIT q.documents + 1) held) > q.documents
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'tenant % may hold % documents and has no room for % more: forget some, or'
            ' raise the limit (membank tenant quota --documents)',
            quote_literal(over.name), over.documents, over.new USING ERRCODE = 'MBQ01';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER document_quota AFTER INSERT ON document
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION document_quota();
ALTER TABLE document ENABLE ALWAYS TRIGGER document_quota;
