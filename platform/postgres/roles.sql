-- Written by `leaderboard manifests`; change the table that it comes from: stack/access_sql.py.
\set ON_ERROR_STOP on
DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'migrate') THEN CREATE ROLE "migrate" LOGIN; END IF; END $$;

DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'on-wager') THEN CREATE ROLE "on-wager" LOGIN; END IF; END $$;
ALTER ROLE "on-wager" CONNECTION LIMIT 400;
ALTER ROLE "on-wager" SET statement_timeout = '120s';
ALTER ROLE "on-wager" SET idle_in_transaction_session_timeout = '60s';
ALTER ROLE "on-wager" SET timezone = 'UTC';
GRANT CONNECT ON DATABASE leaderboard TO "on-wager";
GRANT USAGE ON SCHEMA public TO "on-wager";

DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'on-wager-http') THEN CREATE ROLE "on-wager-http" LOGIN; END IF; END $$;
ALTER ROLE "on-wager-http" CONNECTION LIMIT 400;
ALTER ROLE "on-wager-http" SET statement_timeout = '120s';
ALTER ROLE "on-wager-http" SET idle_in_transaction_session_timeout = '60s';
ALTER ROLE "on-wager-http" SET timezone = 'UTC';
GRANT CONNECT ON DATABASE leaderboard TO "on-wager-http";
GRANT USAGE ON SCHEMA public TO "on-wager-http";

DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'archive') THEN CREATE ROLE "archive" LOGIN; END IF; END $$;
ALTER ROLE "archive" CONNECTION LIMIT 400;
ALTER ROLE "archive" SET statement_timeout = '120s';
ALTER ROLE "archive" SET idle_in_transaction_session_timeout = '60s';
ALTER ROLE "archive" SET timezone = 'UTC';
GRANT CONNECT ON DATABASE leaderboard TO "archive";
GRANT USAGE ON SCHEMA public TO "archive";

DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'query') THEN CREATE ROLE "query" LOGIN; END IF; END $$;
ALTER ROLE "query" CONNECTION LIMIT 400;
ALTER ROLE "query" SET statement_timeout = '120s';
ALTER ROLE "query" SET idle_in_transaction_session_timeout = '60s';
ALTER ROLE "query" SET timezone = 'UTC';
GRANT CONNECT ON DATABASE leaderboard TO "query";
GRANT USAGE ON SCHEMA public TO "query";

DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'on-connect') THEN CREATE ROLE "on-connect" LOGIN; END IF; END $$;
ALTER ROLE "on-connect" CONNECTION LIMIT 400;
ALTER ROLE "on-connect" SET statement_timeout = '120s';
ALTER ROLE "on-connect" SET idle_in_transaction_session_timeout = '60s';
ALTER ROLE "on-connect" SET timezone = 'UTC';
GRANT CONNECT ON DATABASE leaderboard TO "on-connect";
GRANT USAGE ON SCHEMA public TO "on-connect";

DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'erase') THEN CREATE ROLE "erase" LOGIN; END IF; END $$;
ALTER ROLE "erase" CONNECTION LIMIT 400;
ALTER ROLE "erase" SET statement_timeout = '120s';
ALTER ROLE "erase" SET idle_in_transaction_session_timeout = '60s';
ALTER ROLE "erase" SET timezone = 'UTC';
GRANT CONNECT ON DATABASE leaderboard TO "erase";
GRANT USAGE ON SCHEMA public TO "erase";

DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'tournament') THEN CREATE ROLE "tournament" LOGIN; END IF; END $$;
ALTER ROLE "tournament" CONNECTION LIMIT 400;
ALTER ROLE "tournament" SET statement_timeout = '120s';
ALTER ROLE "tournament" SET idle_in_transaction_session_timeout = '60s';
ALTER ROLE "tournament" SET timezone = 'UTC';
GRANT CONNECT ON DATABASE leaderboard TO "tournament";
GRANT USAGE ON SCHEMA public TO "tournament";

DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'operator') THEN CREATE ROLE "operator" LOGIN; END IF; END $$;
ALTER ROLE "operator" CONNECTION LIMIT 400;
ALTER ROLE "operator" SET statement_timeout = '120s';
ALTER ROLE "operator" SET idle_in_transaction_session_timeout = '60s';
ALTER ROLE "operator" SET timezone = 'UTC';
GRANT CONNECT ON DATABASE leaderboard TO "operator";
GRANT USAGE ON SCHEMA public TO "operator";

REVOKE ALL ON DATABASE leaderboard FROM PUBLIC;
GRANT CONNECT ON DATABASE leaderboard TO "migrate";
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO "migrate";
