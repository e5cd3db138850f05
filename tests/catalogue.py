"""What a database is made of, as text: two databases are alike when their catalogues are equal."""

from collections.abc import Iterable

import psycopg

# Object ids differ from database to database, so nothing here shows one; an access list is shown
# with the rights that Postgres takes for granted, a column with its rank and not its number.
_OBJECTS = """
WITH ours AS (
    SELECT c.* FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace
        AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass
            AND d.objid = c.oid AND d.deptype = 'e')
), rows AS (
    SELECT * FROM ours WHERE relkind IN ('r', 'p', 'v', 'm', 'f')
)
SELECT kind, name, said::text FROM (
SELECT 'relation', relname::text, jsonb_build_object(
    'kind', relkind, 'owner', relowner::regrole, 'persistence', relpersistence,
    'method', (SELECT amname FROM pg_am a WHERE a.oid = relam), 'space', reltablespace,
    'options', reloptions, 'identity', relreplident, 'partition', relispartition,
    'rls', relrowsecurity, 'forced', relforcerowsecurity,
    'rights', (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(coalesce(relacl,
        acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner))) a),
    'query', CASE WHEN relkind IN ('v', 'm') THEN pg_get_viewdef(oid) END,
    'comment', obj_description(oid, 'pg_class'))
FROM ours WHERE relkind NOT IN ('i', 'I')
UNION ALL
SELECT 'column', attrelid::regclass || '.' || attname, jsonb_build_object(
    'rank', row_number() OVER (PARTITION BY attrelid ORDER BY attnum),
    'type', format_type(atttypid, atttypmod), 'collation', attcollation::regcollation,
    'required', attnotnull, 'default', pg_get_expr(adbin, adrelid), 'identity', attidentity,
    'generated', attgenerated, 'storage', attstorage, 'compression', attcompression,
    'statistics', attstattarget, 'options', attoptions, 'inherited', attinhcount,
    'rights', (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(attacl) a),
    'comment', col_description(attrelid, attnum))
FROM pg_attribute JOIN rows r ON attrelid = r.oid
    LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE attnum > 0 AND NOT attisdropped
UNION ALL
SELECT 'constraint', conrelid::regclass || '.' || conname, jsonb_build_object(
    'kind', contype, 'definition', pg_get_constraintdef(c.oid), 'valid', convalidated,
    'inherited', coninhcount, 'comment', obj_description(c.oid, 'pg_constraint'))
FROM pg_constraint c JOIN rows r ON r.oid = conrelid
UNION ALL
-- In their order: the cascades of a deletion run in it.
SELECT 'references to', confrelid::regclass::text,
    to_jsonb(array_agg(conrelid::regclass || '.' || conname ORDER BY c.oid))
FROM pg_constraint c JOIN rows r ON r.oid = confrelid WHERE contype = 'f' GROUP BY confrelid
UNION ALL
SELECT 'index', indexrelid::regclass::text, jsonb_build_object(
    'definition', pg_get_indexdef(indexrelid), 'options', i.reloptions, 'valid', indisvalid,
    'clustered', indisclustered, 'identity', indisreplident, 'space', i.reltablespace,
    'owner', i.relowner::regrole, 'comment', obj_description(indexrelid, 'pg_class'))
FROM pg_index JOIN ours i ON i.oid = indexrelid
UNION ALL
SELECT 'sequence', seqrelid::regclass::text, jsonb_build_object(
    'type', seqtypid::regtype, 'start', seqstart, 'step', seqincrement, 'most', seqmax,
    'least', seqmin, 'cache', seqcache, 'cycle', seqcycle,
    'of', pg_get_serial_sequence(refobjid::regclass::text, a.attname))
FROM pg_sequence JOIN ours s ON s.oid = seqrelid
    LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = seqrelid
        AND d.refobjsubid > 0
    LEFT JOIN pg_attribute a ON attrelid = refobjid AND attnum = refobjsubid
UNION ALL
SELECT 'function', p.oid::regprocedure::text, jsonb_build_object(
    'definition', CASE WHEN prokind = 'a' THEN 'aggregate' ELSE pg_get_functiondef(p.oid) END,
    'owner', proowner::regrole,
    'rights', (SELECT array_agg(a::text ORDER BY a::text)
        FROM unnest(coalesce(proacl, acldefault('f', proowner))) a),
    'comment', obj_description(p.oid, 'pg_proc'))
FROM pg_proc p WHERE pronamespace = 'public'::regnamespace
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass
        AND d.objid = p.oid AND d.deptype = 'e')
UNION ALL
SELECT 'trigger', tgrelid::regclass || '.' || tgname, jsonb_build_object(
    'definition', pg_get_triggerdef(t.oid), 'enabled', tgenabled,
    'comment', obj_description(t.oid, 'pg_trigger'))
FROM pg_trigger t JOIN rows r ON r.oid = tgrelid WHERE NOT tgisinternal
UNION ALL
SELECT 'policy', polrelid::regclass || '.' || polname, jsonb_build_object(
    'permissive', polpermissive, 'command', polcmd,
    'roles', (SELECT array_agg(CASE role WHEN 0 THEN 'public' ELSE role::regrole::text END
        ORDER BY role::regrole::text) FROM unnest(polroles) role),
    'using', pg_get_expr(polqual, polrelid), 'check', pg_get_expr(polwithcheck, polrelid),
    'comment', obj_description(p.oid, 'pg_policy'))
FROM pg_policy p JOIN rows r ON r.oid = polrelid
UNION ALL
SELECT 'rule', ev_class::regclass || '.' || rulename,
    jsonb_build_object('definition', pg_get_ruledef(w.oid), 'enabled', ev_enabled)
FROM pg_rewrite w JOIN rows r ON r.oid = ev_class WHERE rulename <> '_RETURN'
UNION ALL
SELECT 'statistics', stxname::text, to_jsonb(pg_get_statisticsobjdef(s.oid))
FROM pg_statistic_ext s JOIN rows r ON r.oid = stxrelid
UNION ALL
SELECT 'default rights', coalesce(defaclnamespace::regnamespace::text, 'anywhere'),
    jsonb_build_object('by', defaclrole::regrole, 'of', defaclobjtype,
        'rights', (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(defaclacl) a))
FROM pg_default_acl
UNION ALL
SELECT 'schema', nspname::text, jsonb_build_object('owner', nspowner::regrole,
    'rights', (SELECT array_agg(a::text ORDER BY a::text)
        FROM unnest(coalesce(nspacl, acldefault('n', nspowner))) a))
FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
UNION ALL
SELECT 'extension', extname::text, to_jsonb(extversion) FROM pg_extension
UNION ALL
SELECT 'event trigger', evtname::text,
    jsonb_build_object('on', evtevent, 'tags', evttags, 'calls', evtfoid::regproc)
FROM pg_event_trigger
UNION ALL
SELECT 'publication', pubname::text, to_jsonb(p) - 'oid' FROM pg_publication p
UNION ALL
-- Whatever else is in the schema: types, operators, collations.
SELECT 'other', o.type, to_jsonb(o.identity)
FROM pg_depend d, pg_identify_object(d.classid, d.objid, 0) o
WHERE refclassid = 'pg_namespace'::regclass AND refobjid = 'public'::regnamespace
    AND d.classid NOT IN ('pg_class'::regclass, 'pg_proc'::regclass, 'pg_extension'::regclass)
    AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = d.classid AND e.objid = d.objid
        AND e.deptype = 'e')
) found (kind, name, said) ORDER BY 1, 2, 3
"""


def catalogue(connection: psycopg.Connection) -> list[str]:
    """One line for each object of the schema `public`, and for what belongs to the database:
    kind, name, and all that its definition, its rights and its comment say."""
    return [f"{kind} {name}: {said}" for kind, name, said in connection.execute(_OBJECTS)]


def names(lines: Iterable[str]) -> set[str]:
    """Which objects some lines are of."""
    return {line.partition(":")[0] for line in lines}
