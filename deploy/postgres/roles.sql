-- The logins of authfence, to be run once by the superuser, in the database of the watched tables, after
-- `authfence migrate up --roles` has made the roles authfence_listener and authfence_node with the grants that go with
-- the mapping (they cannot log in). Then give each login a password that nobody types:
--
--   \password authfence_listen
--   \password authfence_read
--
-- `authfence migrate` itself connects as the owner of the watched tables, who needs CREATE on the database, and
-- CREATEROLE for --roles. Its password is needed for migrations only.

-- authfence listen: the schema authfence and nothing of yours. It locks, so a few connections for each listener.
CREATE ROLE authfence_listen LOGIN CONNECTION LIMIT 20 IN ROLE authfence_listener;

-- Services that link authlib: SELECT on the columns that the mapping names. Read-only twice over.
CREATE ROLE authfence_read LOGIN IN ROLE authfence_node;
ALTER ROLE authfence_read SET default_transaction_read_only = on;
ALTER ROLE authfence_read SET statement_timeout = '5s';
ALTER ROLE authfence_read SET idle_in_transaction_session_timeout = '5s';

-- Where nodes are to record the last use of keys, after `authfence migrate up --roles --usage-role`: UPDATE on that one
-- column. Its transactions say themselves that they write; the fence above stands for all others.
-- GRANT authfence_usage TO authfence_read;

-- Neither may make objects of its own, in public or elsewhere (the default since Postgres 15).
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
