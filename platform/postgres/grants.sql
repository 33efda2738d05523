-- Written by `leaderboard manifests`; change the table that it comes from: stack/access_sql.py.
\set ON_ERROR_STOP on
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM "on-wager";
GRANT SELECT ON alembic_version, erasures, exclusions, inputs, log_positions, players, producer_numbers, standings, terms_history, tournaments TO "on-wager";

REVOKE ALL ON ALL TABLES IN SCHEMA public FROM "on-wager-http";
GRANT SELECT ON alembic_version, tournaments TO "on-wager-http";

REVOKE ALL ON ALL TABLES IN SCHEMA public FROM "archive";
GRANT SELECT ON alembic_version, audit_heads, connection_attempts, dead_letters, erasure_requests, erasures, event_ids, exclusions, forgotten_players, fraud_alerts, fraud_reviews, inputs, log_positions, players, position_changes, producer_numbers, pseudonym_ends, pseudonym_keys, standings, told_changes, tournaments TO "archive";

REVOKE ALL ON ALL TABLES IN SCHEMA public FROM "query";
GRANT SELECT ON alembic_version, connection_attempts, dead_letters, erasure_requests, final_standings, fraud_alerts, fraud_reviews, inputs, players, position_changes, standings, tournaments TO "query";

REVOKE ALL ON ALL TABLES IN SCHEMA public FROM "on-connect";
GRANT SELECT ON alembic_version, forgotten_players, tournaments TO "on-connect";

REVOKE ALL ON ALL TABLES IN SCHEMA public FROM "erase";
GRANT SELECT ON alembic_version, erasure_requests, erasures, final_standings, forgotten_players, players, pseudonym_ends, standings, tournaments TO "erase";
GRANT SELECT (tournament_id, erasure_id) ON pseudonym_keys TO "erase";

REVOKE ALL ON ALL TABLES IN SCHEMA public FROM "tournament";
GRANT SELECT ON alembic_version, final_standings, fraud_alerts, fraud_reviews, players, standings, tournaments TO "tournament";

REVOKE ALL ON ALL TABLES IN SCHEMA public FROM "operator";
GRANT SELECT ON alembic_version, erasures, exclusions, inputs, log_positions, players, producer_numbers, standings, terms_history, tournaments TO "operator";
GRANT INSERT ON audit_heads, connection_attempts, dead_letters, erasure_requests, erasures, event_ids, exclusions, final_standings, forgotten_players, fraud_alerts, fraud_reviews, inputs, log_positions, players, position_changes, producer_numbers, pseudonym_ends, pseudonym_keys, standings, terms_history, told_changes, tournaments TO "archive";
GRANT UPDATE ON audit_heads, connection_attempts, dead_letters, event_ids, exclusions, fraud_alerts, fraud_reviews, inputs, log_positions, players, position_changes, producer_numbers, pseudonym_ends, standings, told_changes, tournaments TO "archive";
GRANT DELETE ON pseudonym_keys, standings TO "archive";
GRANT UPDATE ON erasure_requests TO "erase";
GRANT USAGE ON SEQUENCE tournaments_tournament_no_seq TO "archive";
