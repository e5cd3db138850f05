-- All that the owner has in the schema, without CASCADE: what belongs to another stops it. Views go
-- before what they read; all tables at once, since they refer to each other; functions last, when
-- no policy, trigger or column calls them any more.
DO $$
DECLARE
    kind text;
    every text;
BEGIN
    FOREACH kind IN ARRAY ARRAY['VIEW', 'TABLE', 'FUNCTION'] LOOP
        SELECT string_agg(name, ', ') INTO every FROM (
            SELECT oid::regclass::text, CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'r' THEN 'TABLE' END
            FROM pg_class WHERE relnamespace = 'public'::regnamespace
                AND relowner = current_user::regrole AND relname <> 'alembic_version'
            UNION ALL
            SELECT oid::regprocedure::text, 'FUNCTION' FROM pg_proc
            WHERE pronamespace = 'public'::regnamespace AND proowner = current_user::regrole
        ) found (name, of) WHERE of = kind;
        IF every IS NOT NULL THEN
            EXECUTE format('DROP %s %s', kind, every);
        END IF;
    END LOOP;
END $$;
