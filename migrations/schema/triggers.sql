-- What happens by itself, whoever changes a row and however they do it: the program, psql, COPY, a
-- restore. Each function stands before its triggers, and all of them fire ALWAYS (at the end).

---------------------------------------------------------------------------------------------------
-- Documents make work: the outbox
---------------------------------------------------------------------------------------------------

-- Whoever changes title or text makes a new revision; nothing else does.
CREATE FUNCTION document_revise() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    NEW.content_hash := document_hash(NEW.title, NEW.text);
    IF TG_OP = 'UPDATE' AND NEW.content_hash <> OLD.content_hash THEN
        NEW.revision := OLD.revision + 1;
    END IF;
    NEW.updated_at := now();
    RETURN NEW;
END $$;

CREATE TRIGGER document_revise BEFORE INSERT OR UPDATE ON document
    FOR EACH ROW EXECUTE FUNCTION document_revise();

-- A document whose chunks are behind its text waits to be split. A row that is already there
-- starts afresh, and the worker that may hold it loses its lease. Whoever may edit a document need
-- not be able to write the queue: this does, for nothing but the rows that the statement changed.
CREATE FUNCTION document_queue() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    -- In a statement before the one that reads its profiles, so that this sees what was awaited.
    PERFORM FROM bank b WHERE (b.tenant_id, b.id) IN (
        SELECT d.tenant_id, d.bank_id FROM changed d WHERE d.revision <> d.split_revision)
    ORDER BY b.tenant_id, b.id FOR SHARE;
    INSERT INTO outbox (tenant_id, bank_id, document_id, chunk_id, profile_id, revision, priority)
    SELECT d.tenant_id, d.bank_id, d.id, NULL, b.profile_id, d.revision, (d.revision > 1)::int
    FROM changed d JOIN bank b ON b.tenant_id = d.tenant_id AND b.id = d.bank_id
    WHERE d.revision <> d.split_revision
    ON CONFLICT (tenant_id, bank_id, document_id) WHERE chunk_id IS NULL DO UPDATE
    SET revision = excluded.revision, profile_id = excluded.profile_id,
        priority = excluded.priority, attempts = 0, not_before = now(), lease_token = NULL,
        lease_until = NULL, last_error = NULL
    WHERE outbox.revision <> excluded.revision;
    -- A split that failed for good is over: the document is split by now, or waits for it again.
    DELETE FROM dead_letter l USING changed d
    WHERE l.tenant_id = d.tenant_id AND l.bank_id = d.bank_id AND l.document_id = d.id
        AND l.chunk_id IS NULL;
    RETURN NULL;
END $$;

CREATE TRIGGER document_queue_insert AFTER INSERT ON document
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION document_queue();

CREATE TRIGGER document_queue_update AFTER UPDATE ON document
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION document_queue();

CREATE FUNCTION chunk_queue() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    PERFORM FROM bank b WHERE (b.tenant_id, b.id) IN (SELECT c.tenant_id, c.bank_id FROM added c)
    ORDER BY b.tenant_id, b.id FOR SHARE;
    INSERT INTO outbox (tenant_id, bank_id, document_id, chunk_id, profile_id, revision, priority)
    SELECT c.tenant_id, c.bank_id, c.document_id, c.id, p.id, 0, (d.revision > 1)::int
    FROM added c JOIN bank b ON b.tenant_id = c.tenant_id AND b.id = c.bank_id
    JOIN document d ON d.tenant_id = c.tenant_id AND d.bank_id = c.bank_id AND d.id = c.document_id
    CROSS JOIN LATERAL (VALUES (b.profile_id), (b.next_profile_id)) p (id)
    WHERE p.id IS NOT NULL
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE TRIGGER chunk_queue AFTER INSERT ON chunk
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION chunk_queue();

CREATE FUNCTION chunk_is_final() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'the text of a chunk never changes: update document.text instead'
        USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER chunk_is_final BEFORE UPDATE ON chunk
    FOR EACH ROW WHEN (OLD.text IS DISTINCT FROM NEW.text OR OLD.hash IS DISTINCT FROM NEW.hash)
    EXECUTE FUNCTION chunk_is_final();

-- Chunks alone may be emptied too. Then every document waits to be split again.
CREATE FUNCTION chunk_emptied() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    UPDATE document SET split_revision = 0;
    RETURN NULL;
END $$;

CREATE TRIGGER chunk_emptied AFTER TRUNCATE ON chunk
    FOR EACH STATEMENT EXECUTE FUNCTION chunk_emptied();

-- A file that was put into a bank is work like any other, after whatever else of its tenant waits: a
-- batch of files is read no faster than it is encoded. A file that is put in again, or gets other
-- attributes meanwhile, is work anew: who holds it then finishes in vain.
CREATE FUNCTION file_queue() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF NEW.state = 'storing' THEN
        PERFORM FROM bank b WHERE b.tenant_id = NEW.tenant_id AND b.id = NEW.bank_id FOR SHARE;
        INSERT INTO outbox (tenant_id, bank_id, file_id, profile_id, revision, priority)
        SELECT b.tenant_id, b.id, NEW.file_id, b.profile_id, 0, -1
        FROM bank b WHERE b.tenant_id = NEW.tenant_id AND b.id = NEW.bank_id
        ON CONFLICT (tenant_id, bank_id, file_id) WHERE file_id IS NOT NULL DO UPDATE
        SET profile_id = excluded.profile_id, attempts = 0, not_before = now(),
            lease_token = NULL, lease_until = NULL, last_error = NULL;
    ELSE
        DELETE FROM outbox o WHERE o.tenant_id = NEW.tenant_id AND o.bank_id = NEW.bank_id
            AND o.file_id = NEW.file_id;
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER file_queue AFTER INSERT OR UPDATE OF state, attributes, access ON bank_file
    FOR EACH ROW EXECUTE FUNCTION file_queue();

-- COPY refuses tables with row-level security, but not a view whose trigger takes the rows.
CREATE FUNCTION document_load() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    place text := format('document %L of bank %L of tenant %L', NEW.id, NEW.bank, NEW.tenant);
    known_tenant bigint;
    known_bank bigint;
    entry text;
BEGIN
    SELECT id INTO known_tenant FROM tenant WHERE name = NEW.tenant;
    IF known_tenant IS NULL THEN
        RAISE EXCEPTION '%: there is no such tenant', place USING ERRCODE = 'foreign_key_violation',
            HINT = 'Correct the name, or make the tenant: membank tenant add.';
    END IF;
    SELECT id INTO known_bank FROM bank WHERE tenant_id = known_tenant AND name = NEW.bank;
    IF known_bank IS NULL THEN
        RAISE EXCEPTION '%: the tenant has no such bank', place
            USING ERRCODE = 'foreign_key_violation',
            HINT = 'Correct the name, or make the bank: membank bank add.';
    END IF;
    IF NEW.id IS NULL OR length(NEW.id) NOT BETWEEN 1 AND 512 THEN
        RAISE EXCEPTION '%: the id has no 1 to 512 characters', place
            USING ERRCODE = 'check_violation', HINT = 'Give each document a short id of its own.';
    END IF;
    IF NEW.text IS NULL OR NEW.text !~ '\S' THEN
        RAISE EXCEPTION '%: the text is empty', place USING ERRCODE = 'check_violation',
            HINT = 'Leave the row out, or DELETE the document if it is to go.';
    END IF;
    FOREACH entry IN ARRAY coalesce(NEW.access, '{}') LOOP
        IF entry IS NULL OR entry !~ '^(everyone|(principal|group):.+)$' THEN
            RAISE EXCEPTION '%: % is no access entry', place, quote_nullable(entry)
                USING ERRCODE = 'check_violation',
                HINT = 'Write everyone, principal:NAME or group:NAME.';
        END IF;
    END LOOP;
    INSERT INTO document AS d (tenant_id, bank_id, id, source, title, text, access, metadata)
    VALUES (known_tenant, known_bank, NEW.id, coalesce(NEW.source, NEW.id),
        coalesce(NEW.title, NEW.id), NEW.text, coalesce(NEW.access, '{everyone}'),
        coalesce(NEW.metadata, '{}'))
    ON CONFLICT (tenant_id, bank_id, id) DO UPDATE
    SET text = excluded.text, title = coalesce(NEW.title, d.title),
        source = coalesce(NEW.source, d.source), access = coalesce(NEW.access, d.access),
        metadata = coalesce(NEW.metadata, d.metadata);
    RETURN NEW;
END $$;

CREATE TRIGGER document_load INSTEAD OF INSERT ON document_load
    FOR EACH ROW EXECUTE FUNCTION document_load();

---------------------------------------------------------------------------------------------------
-- A bank's profiles
---------------------------------------------------------------------------------------------------

CREATE FUNCTION bank_profile() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF NEW.profile_id <> OLD.profile_id THEN
        IF NEW.profile_id IS DISTINCT FROM OLD.next_profile_id THEN
            RAISE EXCEPTION 'bank % has memories of profile % only', quote_literal(NEW.name),
                OLD.profile_id USING ERRCODE = 'restrict_violation',
                HINT = 'Set next_profile_id: they are made first, then the bank is switched.';
        END IF;
        NEW.switched_at := now();
    END IF;
    IF NEW.next_profile_id = NEW.profile_id THEN
        RAISE EXCEPTION 'bank % is encoded under profile % already', quote_literal(NEW.name),
            NEW.profile_id USING ERRCODE = 'restrict_violation',
            HINT = 'To drop a change that is under way, set next_profile_id to null.';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER bank_profile BEFORE UPDATE ON bank FOR EACH ROW
    WHEN ((OLD.profile_id, OLD.next_profile_id)
        IS DISTINCT FROM (NEW.profile_id, NEW.next_profile_id))
    EXECUTE FUNCTION bank_profile();

CREATE FUNCTION bank_profile_changed() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    PERFORM bank_tidy(NEW.tenant_id, NEW.id);
    PERFORM bank_fill(NEW.tenant_id, NEW.id);
    RETURN NULL;
END $$;

CREATE TRIGGER bank_profile_changed AFTER UPDATE ON bank FOR EACH ROW
    WHEN ((OLD.profile_id, OLD.next_profile_id)
        IS DISTINCT FROM (NEW.profile_id, NEW.next_profile_id))
    EXECUTE FUNCTION bank_profile_changed();

---------------------------------------------------------------------------------------------------
-- Objects: whoever deletes a document need not be able to write object_gone
---------------------------------------------------------------------------------------------------

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

---------------------------------------------------------------------------------------------------
-- Limits: counted only where there is one. Whoever stores at the same time does not see the other's row
-- yet, so both may pass.
---------------------------------------------------------------------------------------------------

-- No further than the limit.
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

CREATE FUNCTION file_quota() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    over record;
BEGIN
    SELECT t.name, q.upload_bytes, a.new INTO over
    FROM (SELECT tenant_id, sum(bytes) AS new FROM added GROUP BY tenant_id) a
    JOIN tenant_quota q ON q.tenant_id = a.tenant_id AND q.upload_bytes IS NOT NULL
    JOIN tenant t ON t.id = a.tenant_id
    WHERE (SELECT sum(f.bytes) FROM file f WHERE f.tenant_id = a.tenant_id) > q.upload_bytes
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'tenant % may hold % bytes of uploaded files and has no room for % more:'
            ' delete some, or raise the limit (membank tenant quota --upload-bytes)',
            quote_literal(over.name), over.upload_bytes, over.new USING ERRCODE = 'MBQ01';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER file_quota AFTER INSERT ON file
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION file_quota();

---------------------------------------------------------------------------------------------------
-- The audit log
---------------------------------------------------------------------------------------------------

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

-- Documents: one event a statement, bank and kind of change.
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

---------------------------------------------------------------------------------------------------
-- Not even a replica or a restore bypasses them
---------------------------------------------------------------------------------------------------

DO $$
DECLARE
    t record;
BEGIN
    FOR t IN SELECT tgname, tgrelid::regclass AS on FROM pg_trigger JOIN pg_class c ON c.oid = tgrelid
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND NOT tgisinternal
    LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', t.on, t.tgname);
    END LOOP;
END $$;
