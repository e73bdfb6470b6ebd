-- +goose Up

-- +goose StatementBegin
-- The watched tables with everything beneath them, as they are now. They are found by name: a table that was renamed
-- away, or swapped for another of the same name, must show.
CREATE FUNCTION authfence.watched_relations()
RETURNS TABLE (kind text, oid oid, root oid, relkind "char", is_partition boolean)
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$
    WITH RECURSIVE tree AS (
        SELECT w.kind, c.oid, c.oid AS root, c.relkind, false AS is_partition
        FROM authfence.watched w
        JOIN pg_namespace n ON n.nspname = w.schema_name
        JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.table_name AND c.relkind IN ('r', 'p')
        UNION ALL
        SELECT t.kind, c.oid, t.root, c.relkind, c.relispartition
        FROM tree t JOIN pg_inherits i ON i.inhparent = t.oid JOIN pg_class c ON c.oid = i.inhrelid
    )
    SELECT * FROM tree
$$;
-- +goose StatementEnd

-- +goose StatementBegin
-- MD5 of what the two functions of a kind do and as whom; NULL when one is missing.
CREATE FUNCTION authfence.function_hash(kind text) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN count(*) = 2 THEN
        md5(string_agg(concat_ws('|', p.proname, p.prosrc, p.prosecdef, p.proconfig::text), '|' ORDER BY p.proname)) END
    FROM pg_proc p
    WHERE p.pronamespace = to_regnamespace('authfence') AND p.pronargs = 0 AND p.proname IN ('count_' || kind, 'log_' || kind)
$$;
-- +goose StatementEnd

-- +goose StatementBegin
-- Other people's triggers that may change a row on its way into a watched table or a partition of it.
CREATE FUNCTION authfence.before_update_triggers() RETURNS SETOF pg_trigger
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$
    -- tgtype: 1 per row, 2 BEFORE, 16 UPDATE.
    SELECT t.* FROM authfence.watched_relations() r JOIN pg_trigger t ON t.tgrelid = r.oid
    WHERE t.tgtype & 19 = 19 AND NOT t.tgisinternal
$$;
-- +goose StatementEnd

-- +goose StatementBegin
-- Rule 23: one row a finding, none when all is well. A finding means that changes may be lost, so leases are refused;
-- one that is only a warning refuses nothing.
CREATE FUNCTION authfence.trigger_check()
RETURNS TABLE (kind text, relation text, problem text, warning boolean)
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$
    WITH relations AS MATERIALIZED (SELECT * FROM authfence.watched_relations()),
    expected (suffix, type, per_row) AS (VALUES ('row', 13, true), ('update', 17, true), ('truncate', 32, false)),
    found AS (
        SELECT r.kind, r.oid, format('%I.%I', n.nspname, c.relname) AS relation, r.is_partition, r.oid = r.root AS is_root,
            'authfence_' || r.kind || '_' || e.suffix AS name, e.type, e.per_row,
            t.oid AS trigger, t.tgtype, t.tgenabled, t.tgfoid, t.tgattr::int2[] AS columns,
            w.relevant, e.suffix
        FROM relations r
        JOIN authfence.watched w USING (kind)
        JOIN pg_class c ON c.oid = r.oid JOIN pg_namespace n ON n.oid = c.relnamespace
        CROSS JOIN expected e
        LEFT JOIN pg_trigger t ON t.tgrelid = r.oid AND t.tgname = 'authfence_' || r.kind || '_' || e.suffix
        WHERE r.relkind IN ('r', 'p') AND (r.oid = r.root OR r.is_partition)
    ),
    findings (kind, relation, problem, warning) AS (
        SELECT f.kind, f.relation, p.text, false
        FROM found f, LATERAL (SELECT CASE
            WHEN f.trigger IS NULL AND (f.per_row OR f.is_root) THEN format('trigger %I is missing', f.name)
            WHEN f.trigger IS NULL THEN NULL
            WHEN f.tgtype <> f.type OR f.tgfoid IS DISTINCT FROM to_regproc('authfence.log_' || f.kind)::oid
                THEN format('trigger %I is not the one that was installed', f.name)
            WHEN f.tgenabled = 'D' THEN format('trigger %I is disabled', f.name)
            WHEN f.tgenabled <> 'A' THEN format('trigger %I is not enabled always', f.name)
            WHEN f.suffix = 'update' AND f.is_root AND f.relevant IS DISTINCT FROM (
                SELECT array_agg(DISTINCT a.attname::text COLLATE "C" ORDER BY a.attname::text COLLATE "C")
                FROM pg_depend d JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
                WHERE d.classid = 'pg_trigger'::regclass AND d.objid = f.trigger
                    AND d.refclassid = 'pg_class'::regclass AND d.refobjid = f.oid AND d.refobjsubid > 0)
                THEN format('trigger %I compares other columns than the mapping names (was one renamed?)', f.name)
            WHEN f.suffix = 'update' AND cardinality(f.columns) > 0 AND f.relevant IS DISTINCT FROM (
                SELECT array_agg(a.attname::text COLLATE "C" ORDER BY a.attname::text COLLATE "C")
                FROM pg_attribute a WHERE a.attrelid = f.oid AND a.attnum = ANY (f.columns))
                THEN format('trigger %I looks at updates of other columns than the mapping names', f.name)
            END) AS p (text)
        WHERE p.text IS NOT NULL
        UNION ALL
        -- The trigger for updates looks only at statements that name a relevant column, unless a BEFORE trigger stood
        -- beside it at the installation: such a one may change a column that the statement does not name.
        SELECT f.kind, f.relation, format('trigger %I was added after the installation: what it changes may go unseen', b.tgname), false
        FROM found f JOIN authfence.before_update_triggers() b ON b.tgrelid = f.oid
        WHERE f.suffix = 'update' AND cardinality(f.columns) > 0
        UNION ALL
        SELECT f.kind, f.relation, format('trigger %I is missing: a TRUNCATE of this partition alone is not logged', f.name), true
        FROM found f WHERE f.trigger IS NULL AND NOT f.per_row AND NOT f.is_root
        UNION ALL
        SELECT r.kind, r.oid::regclass::text, CASE WHEN r.relkind = 'f' THEN 'a foreign partition: writes made there are not logged'
            ELSE 'a child by INHERITS: triggers do not reach it' END, false
        FROM relations r WHERE r.oid <> r.root AND (r.relkind = 'f' OR NOT r.is_partition)
        UNION ALL
        SELECT w.kind, format('%I.%I', w.schema_name, w.table_name), 'the table does not exist (dropped, or renamed?)', false
        FROM authfence.watched w WHERE NOT EXISTS (SELECT FROM relations r WHERE r.kind = w.kind)
        UNION ALL
        SELECT w.kind, format('%I.%I', w.schema_name, w.table_name), 'a trigger function is missing or was altered', false
        FROM authfence.watched w WHERE authfence.function_hash(w.kind) IS DISTINCT FROM w.functions
        UNION ALL
        SELECT k.kind, '', 'no table is watched', false
        FROM (VALUES ('api_key'), ('organization')) AS k (kind)
        WHERE NOT EXISTS (SELECT FROM authfence.watched w WHERE w.kind = k.kind)
    )
    SELECT * FROM findings ORDER BY warning, kind, relation, problem
$$;
-- +goose StatementEnd

-- +goose StatementBegin
-- Rule 23: a text that changes when anything happened between two checks that may have let a change slip by, also if it
-- was put right again: a trigger dropped and made anew, or disabled and enabled; a partition attached or detached; a
-- table swapped, rewritten, or truncated behind the triggers (its file changes); a relevant column renamed; a BEFORE
-- trigger of somebody else's added or dropped. VACUUM FULL rewrites too: a needless reset, and a rare one.
CREATE FUNCTION authfence.trigger_fingerprint() RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT md5(COALESCE(string_agg(line, E'\n' ORDER BY line COLLATE "C"), '')) FROM (
        SELECT concat_ws('|', r.kind, r.oid, pg_relation_filenode(r.oid), t.tgname, t.oid, t.xmin, t.tgenabled, t.tgfoid)
        FROM authfence.watched_relations() r
        LEFT JOIN pg_trigger t ON t.tgrelid = r.oid AND starts_with(t.tgname::text, 'authfence_' || r.kind || '_')
        UNION ALL
        SELECT concat_ws('|', w.kind, w.schema_name, w.table_name, w.mapping, authfence.function_hash(w.kind)) FROM authfence.watched w
        UNION ALL
        SELECT concat_ws('|', r.kind, r.oid, a.attnum, a.attname, a.atttypid)
        FROM authfence.watched_relations() r JOIN authfence.watched w USING (kind)
        JOIN pg_attribute a ON a.attrelid = r.oid AND a.attname = ANY (w.relevant) AND NOT a.attisdropped
        UNION ALL
        SELECT concat_ws('|', t.tgrelid, t.oid) FROM authfence.before_update_triggers() t
        UNION ALL
        SELECT concat_ws('|', p.proname, p.oid, p.xmin, p.proowner) FROM pg_proc p
        WHERE p.pronamespace = to_regnamespace('authfence') AND p.proname ~ '^(count|log)_'
    ) AS lines (line)
$$;
-- +goose StatementEnd

REVOKE ALL ON FUNCTION authfence.watched_relations(), authfence.function_hash(text), authfence.before_update_triggers(),
    authfence.trigger_check(), authfence.trigger_fingerprint() FROM PUBLIC;

-- +goose Down
DROP FUNCTION authfence.trigger_fingerprint(), authfence.trigger_check(), authfence.before_update_triggers(),
    authfence.function_hash(text), authfence.watched_relations();
