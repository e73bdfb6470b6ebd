-- +goose Up

-- Which key followed which, for `authfence keys`: a key with a successor is rotating until it ends. A table of its own,
-- so that a watched table needs no column for it. No trigger, no event: nodes never read it.
CREATE TABLE authfence.rotation (
    relation  text        NOT NULL, -- the keys' table, as schema.table
    key       text        NOT NULL, -- the old key's id
    successor text        NOT NULL, -- the new key's id
    ends_at   timestamptz NOT NULL, -- of the grace; forgotten some time after
    PRIMARY KEY (relation, key)
);

-- +goose Down
DROP TABLE authfence.rotation;
