ALTER POLICY reader ON document USING (access && (SELECT current_readers()));
DROP FUNCTION current_banks(), find_key(bigint, bigint, bytea);
DROP TABLE bank_member, api_key;
