-- What is called: by policies, by the program, by people with psql. Trigger functions stand in
-- triggers.sql, document_hash() with its column in tables.sql.
--
-- Each names where it looks names up, temporary tables last: one called context_key or group_member
-- must not stand in for the real one. SECURITY DEFINER runs as membank_owner, which policies bind
-- too (policies.sql says what it may see), and is never for everyone (roles.sql).

---------------------------------------------------------------------------------------------------
-- Who is asking
---------------------------------------------------------------------------------------------------

-- Who is asking stands in one setting, set per transaction by app/db/session.py:
-- KEY TENANT PRINCIPAL SIGNATURE. Whoever can run SQL can set it, but not sign it. The answer is
-- {tenant, principal}, null without a context, and an error when no valid key signed it. It is signed
-- for one server process, so that what was seen in another session is of no use here.
CREATE FUNCTION signed_context() RETURNS bigint[]
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
-- The session forces custom plans: planned anew, a check takes 30 microseconds instead of 7.
SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    said text := nullif(current_setting('membank.context', true), '');
BEGIN
    IF said IS NULL THEN
        RETURN NULL;
    END IF;
    -- Hashes are compared, so that the time it takes tells nothing of the right signature.
    IF EXISTS (
        SELECT FROM context_key WHERE id = left(said, 16) AND valid_until > now()
            AND sha256(convert_to(right(said, 64), 'UTF8')) = sha256(convert_to(encode(sha256(
                outer_pad || sha256(inner_pad || convert_to(
                    left(said, -64) || pg_backend_pid(), 'UTF8'))), 'hex'), 'UTF8')))
    THEN
        RETURN ARRAY[split_part(said, ' ', 2)::bigint, nullif(split_part(said, ' ', 3)::bigint, 0)];
    END IF;
    RAISE EXCEPTION 'who is asking is not signed with a key of this database'
        USING ERRCODE = 'insufficient_privilege';
END $$;

-- Null without a context, and null matches no row.
CREATE FUNCTION current_tenant() RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    RETURN (signed_context())[1];
END $$;

CREATE FUNCTION current_principal() RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    RETURN (signed_context())[2];
END $$;

-- The names under which the asking principal may stand in a document's access list.
CREATE FUNCTION current_readers() RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT ARRAY['everyone', 'principal:' || p.name] || ARRAY(
        SELECT 'group:' || g.name
        FROM group_member m
        JOIN principal_group g ON g.tenant_id = m.tenant_id AND g.id = m.group_id
        WHERE m.tenant_id = p.tenant_id AND m.principal_id = p.id)
    FROM principal p
    WHERE p.tenant_id = (SELECT current_tenant()) AND p.id = (SELECT current_principal())
$$;

-- Banks of which the asking principal may read anything; only the one that a search says it is of,
-- so that it need not go through the documents of a tenant's other banks. The setting can hide rows,
-- and show none.
CREATE FUNCTION current_banks() RETURNS bigint[]
LANGUAGE sql STABLE SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT array_agg(DISTINCT bank_id) FROM bank_member
    WHERE tenant_id = (SELECT current_tenant()) AND grantee = ANY ((SELECT current_readers())::text[])
        AND bank_id = coalesce(nullif(current_setting('membank.searched', true), '')::bigint, bank_id)
$$;

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

-- The tenant of a person who is logged in with psql: by the login, and by no setting.
CREATE FUNCTION role_tenant() RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT tenant_id FROM tenant_role WHERE role = session_user
$$;

---------------------------------------------------------------------------------------------------
-- Asked before a tenant is known: ids, and nothing else of a tenant
---------------------------------------------------------------------------------------------------

-- It answers for one name at a time.
CREATE FUNCTION find_tenant(wanted text) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT id FROM tenant WHERE name = wanted
$$;

-- Even the owner, as whom it runs, sees only the one row whose numbers it was given, and the caller
-- learns of that one nothing without its secret. Comparing two hashes under a fresh nonce takes as
-- long whatever they have in common.
CREATE FUNCTION find_key(tenant bigint, key bigint, shown bytea)
RETURNS TABLE (principal_id bigint, scopes text[], expires_at timestamptz, fault text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
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

-- For what goes from tenant to tenant, such as a reconciliation.
CREATE FUNCTION next_tenant(after bigint) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT min(id) FROM tenant WHERE id > after
$$;

-- The worker leaves them out.
CREATE FUNCTION paused_tenants() RETURNS SETOF bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT id FROM tenant WHERE paused
$$;

-- For the relay, which looks whether they can be switched.
CREATE FUNCTION changing_banks() RETURNS TABLE (tenant_id bigint, bank_id bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT b.tenant_id, b.id FROM bank b WHERE b.next_profile_id IS NOT NULL ORDER BY 1, 2
$$;

-- For the relay, which removes objects. A tenant may be gone by then.
CREATE FUNCTION gone_tenants() RETURNS SETOF bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT DISTINCT tenant_id FROM object_gone ORDER BY 1
$$;

---------------------------------------------------------------------------------------------------
-- Jobs. Retry and cancel lock the documents first, as edits and deletions do, and touch no other's
-- work: so nobody waits for ever.
---------------------------------------------------------------------------------------------------

CREATE FUNCTION job_retry(tenant bigint, bank bigint DEFAULT NULL,
    document text DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    banks bigint[];
    names text[];
    moved bigint;
BEGIN
    PERFORM FROM bank b WHERE b.tenant_id = tenant AND b.id = coalesce(bank, b.id)
    ORDER BY b.id FOR SHARE;
    SELECT array_agg(locked.bank_id), array_agg(locked.id) INTO banks, names FROM (
        SELECT d.bank_id, d.id FROM document d WHERE d.tenant_id = tenant
            AND d.bank_id = coalesce(bank, d.bank_id) AND d.id = coalesce(document, d.id)
            AND EXISTS (SELECT FROM dead_letter l WHERE l.tenant_id = d.tenant_id
                AND l.bank_id = d.bank_id AND l.document_id = d.id AND NOT l.discarded)
        ORDER BY d.bank_id, d.id FOR NO KEY UPDATE) locked;
    WITH again AS (
        DELETE FROM dead_letter l USING unnest(banks, names) mine(bank_id, id)
        WHERE l.tenant_id = tenant AND l.bank_id = mine.bank_id AND l.document_id = mine.id
            AND NOT l.discarded
        RETURNING l.*
    ), queued AS (
        INSERT INTO outbox
            (tenant_id, bank_id, document_id, chunk_id, profile_id, revision, priority)
        SELECT DISTINCT a.tenant_id, a.bank_id, a.document_id, a.chunk_id,
               coalesce(a.profile_id, b.profile_id),
               CASE WHEN a.chunk_id IS NULL THEN d.revision ELSE 0 END, (d.revision > 1)::int
        FROM again a
        JOIN bank b ON b.tenant_id = a.tenant_id AND b.id = a.bank_id
        JOIN document d ON d.tenant_id = a.tenant_id AND d.bank_id = a.bank_id
            AND d.id = a.document_id
        ON CONFLICT DO NOTHING
    )
    SELECT count(*) INTO moved FROM again;
    RETURN moved;
END $$;
COMMENT ON FUNCTION job_retry IS
    'Puts what has failed back in the outbox, as if it had never been tried. Returns how many.';

-- Files that wait too: by their id in the document's place.
CREATE FUNCTION job_cancel(tenant bigint, bank bigint DEFAULT NULL,
    document text DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    banks bigint[];
    names text[];
    moved bigint;
    files bigint;
BEGIN
    SELECT array_agg(locked.bank_id), array_agg(locked.id) INTO banks, names FROM (
        SELECT d.bank_id, d.id FROM document d WHERE d.tenant_id = tenant
            AND d.bank_id = coalesce(bank, d.bank_id) AND d.id = coalesce(document, d.id)
            AND EXISTS (SELECT FROM outbox o WHERE o.tenant_id = d.tenant_id
                AND o.bank_id = d.bank_id AND o.document_id = d.id)
        ORDER BY d.bank_id, d.id FOR NO KEY UPDATE) locked;
    WITH waiting AS (
        SELECT o.id FROM outbox o JOIN unnest(banks, names) mine(bank_id, id)
            ON o.bank_id = mine.bank_id AND o.document_id = mine.id
        WHERE o.tenant_id = tenant AND (o.lease_until IS NULL OR o.lease_until < now())
        FOR UPDATE OF o SKIP LOCKED
    ), taken AS (
        DELETE FROM outbox o USING waiting w WHERE o.tenant_id = tenant AND o.id = w.id
        RETURNING o.*
    ), kept AS (
        INSERT INTO dead_letter
            (tenant_id, bank_id, document_id, chunk_id, profile_id, attempts, error)
        SELECT tenant_id, bank_id, document_id, chunk_id,
               CASE WHEN chunk_id IS NOT NULL THEN profile_id END, attempts, 'cancelled'
        FROM taken
    )
    SELECT count(*) INTO moved FROM taken;
    -- Files have no dead letter: they say themselves that they were cancelled, and a trigger takes
    -- their work away.
    UPDATE bank_file f SET state = 'cancelled'
    WHERE f.tenant_id = tenant AND f.bank_id = coalesce(bank, f.bank_id) AND f.state = 'storing'
        AND f.file_id = coalesce(document, f.file_id)
        AND EXISTS (SELECT FROM outbox o WHERE o.tenant_id = f.tenant_id AND o.bank_id = f.bank_id
            AND o.file_id = f.file_id AND (o.lease_until IS NULL OR o.lease_until < now()));
    GET DIAGNOSTICS files = ROW_COUNT;
    RETURN moved + files;
END $$;
COMMENT ON FUNCTION job_cancel IS
    'Moves waiting work to dead_letter, error cancelled; not what a worker holds. Returns how many.';

CREATE FUNCTION job_discard(tenant bigint, bank bigint DEFAULT NULL, document text DEFAULT NULL)
RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, public, pg_temp AS $$
    WITH gone AS (
        UPDATE dead_letter l SET discarded = true WHERE l.tenant_id = tenant
            AND l.bank_id = coalesce(bank, l.bank_id)
            AND l.document_id = coalesce(document, l.document_id) AND NOT l.discarded
        RETURNING 1
    )
    SELECT count(*) FROM gone
$$;
COMMENT ON FUNCTION job_discard IS
    'Takes what has failed off the list for good; what it was for stays undone. Returns how many.';

---------------------------------------------------------------------------------------------------
-- A change of profile. Whoever changes a bank's profiles holds the bank against those that add chunks
-- or splits to it, and waits for nobody from then on: what others hold (SKIP LOCKED) is left to the
-- next look. Where a row was changed since the statement began, Postgres waits all the same; so the
-- program holds the bank before it locks a document.
---------------------------------------------------------------------------------------------------

CREATE FUNCTION bank_fill(tenant bigint, bank bigint) RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, public, pg_temp AS $$
    WITH lacking AS (
        SELECT c.tenant_id, c.bank_id, c.document_id, c.id, b.next_profile_id
        FROM bank b
        JOIN chunk c ON c.tenant_id = b.tenant_id AND c.bank_id = b.id
        JOIN document d ON d.tenant_id = c.tenant_id AND d.bank_id = c.bank_id
            AND d.id = c.document_id
        WHERE b.tenant_id = tenant AND b.id = bank AND b.next_profile_id IS NOT NULL
            AND NOT EXISTS (SELECT FROM memory_blob m WHERE m.tenant_id = c.tenant_id
                AND m.chunk_id = c.id AND m.profile_id = b.next_profile_id)
            AND NOT EXISTS (SELECT FROM dead_letter l WHERE l.tenant_id = c.tenant_id
                AND l.chunk_id = c.id AND l.profile_id = b.next_profile_id)
        ORDER BY c.id
        FOR KEY SHARE OF c SKIP LOCKED FOR KEY SHARE OF d SKIP LOCKED
    ), queued AS (
        INSERT INTO outbox
            (tenant_id, bank_id, document_id, chunk_id, profile_id, revision, priority)
        SELECT tenant_id, bank_id, document_id, id, next_profile_id, 0, -1 FROM lacking
        ON CONFLICT DO NOTHING
        RETURNING 1
    )
    SELECT count(*) FROM queued
$$;
COMMENT ON FUNCTION bank_fill IS
    'Queues the chunks that have no memory under the bank''s next profile. Returns how many.';

CREATE FUNCTION bank_tidy(tenant bigint, bank bigint) RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, public, pg_temp AS $$
    WITH astray AS (
        SELECT o.id, o.chunk_id, b.profile_id
        FROM outbox o JOIN bank b ON b.tenant_id = o.tenant_id AND b.id = o.bank_id
        WHERE o.tenant_id = tenant AND o.bank_id = bank AND o.profile_id <> b.profile_id
            AND (o.chunk_id IS NULL OR o.profile_id IS DISTINCT FROM b.next_profile_id)
        FOR UPDATE OF o SKIP LOCKED
    ), dropped AS (
        DELETE FROM outbox o USING astray a
        WHERE o.tenant_id = tenant AND o.id = a.id AND a.chunk_id IS NOT NULL
        RETURNING 1
    ), handed_over AS (
        UPDATE outbox o SET profile_id = a.profile_id, attempts = 0, not_before = now(),
            lease_token = NULL, lease_until = NULL, last_error = NULL
        FROM astray a WHERE o.tenant_id = tenant AND o.id = a.id AND a.chunk_id IS NULL
        RETURNING 1
    ), outlived AS (
        SELECT l.id FROM dead_letter l JOIN bank b ON b.tenant_id = l.tenant_id AND b.id = l.bank_id
        WHERE l.tenant_id = tenant AND l.bank_id = bank AND l.profile_id <> b.profile_id
            AND l.profile_id IS DISTINCT FROM b.next_profile_id
        FOR UPDATE OF l SKIP LOCKED
    ), forgotten AS (
        DELETE FROM dead_letter l USING outlived x WHERE l.tenant_id = tenant AND l.id = x.id
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM dropped) + (SELECT count(*) FROM handed_over)
        + (SELECT count(*) FROM forgotten)
$$;
COMMENT ON FUNCTION bank_tidy IS
    'Drops work and failures of profiles that the bank no longer has; splits go to its profile.';

-- Nothing that is found now is lost by the switch: work that has no memory under either profile
-- does not hold it up, and goes on after it. A generic plan would be wrong for banks of other sizes.
CREATE FUNCTION bank_covered(tenant bigint, bank bigint) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp
SET plan_cache_mode = force_custom_plan AS $$
DECLARE
    serving text;
    next text;
BEGIN
    SELECT b.profile_id, b.next_profile_id INTO serving, next
    FROM bank b WHERE b.tenant_id = tenant AND b.id = bank;
    -- The cheap looks first: the relay asks at every poll.
    IF next IS NULL
        OR EXISTS (SELECT FROM outbox o JOIN memory_key k ON k.tenant_id = o.tenant_id
            AND k.chunk_id = o.chunk_id AND k.profile_id = serving
            WHERE o.tenant_id = tenant AND o.profile_id = next AND o.bank_id = bank)
        OR EXISTS (SELECT FROM dead_letter l WHERE l.tenant_id = tenant AND l.bank_id = bank
            AND l.profile_id = next AND NOT l.discarded)
    THEN
        RETURN false;
    END IF;
    IF EXISTS (SELECT FROM memory_key k
        WHERE k.tenant_id = tenant AND k.bank_id = bank AND k.profile_id = serving
            AND NOT EXISTS (SELECT FROM memory_blob m WHERE m.tenant_id = k.tenant_id
                AND m.chunk_id = k.chunk_id AND m.profile_id = next)
            AND NOT EXISTS (SELECT FROM dead_letter l WHERE l.tenant_id = k.tenant_id
                AND l.chunk_id = k.chunk_id AND l.profile_id = next))
    THEN
        PERFORM bank_fill(tenant, bank);
        RETURN false;
    END IF;
    RETURN true;
END $$;
COMMENT ON FUNCTION bank_covered IS
    'Whether all that is served has a memory under the next profile, or was discarded for it.';

CREATE FUNCTION bank_switch(tenant bigint, bank bigint) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp SET lock_timeout = '1s' AS $$
BEGIN
    IF NOT bank_covered(tenant, bank) THEN
        RETURN false;
    END IF;
    PERFORM FROM bank b WHERE b.tenant_id = tenant AND b.id = bank FOR NO KEY UPDATE;
    IF NOT bank_covered(tenant, bank) THEN
        RETURN false;
    END IF;
    UPDATE bank b SET profile_id = b.next_profile_id, next_profile_id = NULL
    WHERE b.tenant_id = tenant AND b.id = bank;
    RETURN true;
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    RETURN false;  -- someone adds documents in a long transaction; there is another time
END $$;
COMMENT ON FUNCTION bank_switch IS
    'Makes the next profile the bank''s if it covers what is served. Returns whether it did.';

---------------------------------------------------------------------------------------------------
-- Limits. Who asks counts by these functions and in no other way; they see what belongs to the tenant
-- that asks.
---------------------------------------------------------------------------------------------------

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

---------------------------------------------------------------------------------------------------
-- The audit log. These two alone delete from it, and only of the tenant that they are called for.
---------------------------------------------------------------------------------------------------

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
    'Deletes up to 10,000 of a tenant''s events older than so many days, 30 or more. Returns how many.';

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
