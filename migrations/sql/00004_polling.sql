-- +goose Up

-- From since to until, by the clock of Postgres, a leader looks at the change log every few milliseconds anyway: writers need
-- not wake it, and so need not wait for NOTIFY's lock. Unlogged: it is written several times a second under load, and
-- after a crash no leader has promised anything.
CREATE UNLOGGED TABLE authfence.polling (
    id    boolean     PRIMARY KEY DEFAULT true CHECK (id),
    since timestamptz NOT NULL,
    until timestamptz NOT NULL
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);

-- +goose Down
DROP TABLE authfence.polling;
