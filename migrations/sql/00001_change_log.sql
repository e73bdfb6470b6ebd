-- +goose Up

-- The outbox (rule 1). One row a ref, written by triggers in the writer's own transaction; the listener deletes what it
-- sees (rule 8). No index: it is drained whole. Never a secret: a key is named by the SHA-256 of its token.
CREATE TABLE authfence.change (
    kind text        NOT NULL,
    ref  text        NOT NULL,
    op   text        NOT NULL,
    wide boolean     NOT NULL, -- every ref of the kind; ref is then empty
    at   timestamptz NOT NULL
) WITH (
    -- Every row dies within milliseconds, and a drain reads every page: vacuum by count of rows, soon and at full speed.
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0,
    autovacuum_vacuum_insert_threshold = -1, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 1000000
);
-- A publication FOR ALL TABLES would otherwise make the drain's DELETE an error.
ALTER TABLE authfence.change REPLICA IDENTITY FULL;

-- The one row that orders everything (rules 6 to 8). (n_term, n) is the committed position; n_term may be older than
-- term until the first event of the new term commits.
CREATE TABLE authfence.relay (
    id               boolean PRIMARY KEY DEFAULT true CHECK (id),
    epoch            text    NOT NULL DEFAULT '' CHECK (epoch ~ '^([0-9a-f]{16})?$'), -- empty before the first listener
    identity         text    NOT NULL DEFAULT '',
    term             bigint  NOT NULL DEFAULT 0 CHECK (term >= 0),
    n_term           bigint  NOT NULL DEFAULT 0 CHECK (n_term BETWEEN 0 AND term),
    n                bigint  NOT NULL DEFAULT 0 CHECK (n >= 0),
    lease_ceiling_ms bigint  NOT NULL DEFAULT 0 CHECK (lease_ceiling_ms >= 0) -- the longest lease the last leader may have granted
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);
INSERT INTO authfence.relay DEFAULT VALUES;

-- Postgres empties an unlogged table when it recovers from a crash, also when only a backend crashed and the postmaster
-- lived on, and on a promoted standby. So a commit that was acknowledged and then lost shows as another epoch (rule 6).
CREATE UNLOGGED TABLE authfence.incarnation (token text NOT NULL);

-- What is installed, one row a kind; trigger_check compares it with what stands (rule 23).
CREATE TABLE authfence.watched (
    kind         text        PRIMARY KEY CHECK (kind IN ('api_key', 'organization')),
    schema_name  text        NOT NULL,
    table_name   text        NOT NULL,
    relevant     text[]      NOT NULL, -- the columns that the update trigger compares, sorted
    functions    text        NOT NULL, -- MD5 of the bodies of the two functions of the kind
    mapping      text        NOT NULL, -- what was asked for, as the migration wrote it
    installed_at timestamptz NOT NULL DEFAULT now()
);

-- +goose Down
DROP TABLE authfence.watched, authfence.incarnation, authfence.relay, authfence.change;
