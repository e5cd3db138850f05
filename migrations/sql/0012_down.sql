DROP FUNCTION idempotency_begin, idempotency_end;
DROP TABLE idempotency_key;
