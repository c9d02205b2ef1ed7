-- The image of PostgreSQL runs this once, as superuser, when compose.yml makes the database.
-- It makes the role that owns the tables, the cache's role and the tables. Undo: drop the database, then both roles.
-- The passwords are those of the password files. A statement that fails must not write one to the log.
set log_min_error_statement = panic;
\set owner_password `cut -d: -f5 /run/secrets/owner`
\set oddscache_password `cut -d: -f5 /run/secrets/oddscache`
create role owner login password :'owner_password';
create role oddscache login password :'oddscache_password';
alter database odds owner to owner;

-- If migrations of your application make the tables, let them do that as `owner`, and delete the rest of this file.
set role owner;
\i /tables.sql
