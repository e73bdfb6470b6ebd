-- +goose Up

-- For new projects and the demo. What stands already is left as it is; whether it fits is for the mapping to tell.
CREATE TABLE IF NOT EXISTS public.organizations (
    id           uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    name         text        NOT NULL,
    hmac_key     text        NOT NULL DEFAULT encode(sha256(gen_random_uuid()::text::bytea), 'hex'), -- a secret: nodes may not read it
    suspended_at timestamptz,
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS public.api_keys (
    id              uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid        NOT NULL REFERENCES public.organizations (id) ON DELETE CASCADE,
    key_hash        bytea       NOT NULL CHECK (octet_length(key_hash) = 32), -- SHA-256 of the token
    name            text        NOT NULL DEFAULT '',
    permissions     jsonb       NOT NULL DEFAULT '{}', -- {"invoices": ["read", "write"]}
    expires_at      timestamptz,
    revoked_at      timestamptz,
    last_used_at    timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX IF NOT EXISTS api_keys_key_hash ON public.api_keys (key_hash);
CREATE INDEX IF NOT EXISTS api_keys_organization_id ON public.api_keys (organization_id);

-- +goose Down
DROP TABLE IF EXISTS public.api_keys;
DROP TABLE IF EXISTS public.organizations;
