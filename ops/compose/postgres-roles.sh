#!/bin/sh
# Run once by the PostgreSQL image, as the superuser, when its volume is empty: the owner of the schema, who runs the
# migrations, and the role of the services, which row security binds.
set -eu
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
\getenv owner_password DAARION_OWNER_PASSWORD
\getenv service_password DAARION_SERVICE_PASSWORD
CREATE ROLE daarion_owner LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB NOREPLICATION PASSWORD :'owner_password';
CREATE ROLE daarion_service LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB NOREPLICATION PASSWORD :'service_password';
ALTER DATABASE :"DBNAME" OWNER TO daarion_owner;
ALTER SCHEMA public OWNER TO daarion_owner;
REVOKE ALL ON DATABASE :"DBNAME" FROM PUBLIC;
GRANT CONNECT ON DATABASE :"DBNAME" TO daarion_service;
CREATE EXTENSION IF NOT EXISTS vector;
SQL
