CREATE VIEW document_status WITH (security_invoker = true) AS
SELECT d.tenant_id, d.bank_id, d.id, d.source, d.revision,
       CASE
           WHEN EXISTS (SELECT FROM dead_letter l WHERE l.tenant_id = d.tenant_id
               AND l.bank_id = d.bank_id AND l.document_id = d.id) THEN 'failed'
           WHEN NOT EXISTS (SELECT FROM outbox o WHERE o.tenant_id = d.tenant_id
               AND o.bank_id = d.bank_id AND o.document_id = d.id) THEN 'ready'
           WHEN EXISTS (SELECT FROM outbox o WHERE o.tenant_id = d.tenant_id
               AND o.bank_id = d.bank_id AND o.document_id = d.id
               AND o.lease_until > now()) THEN 'encoding'
           ELSE 'pending'
       END AS status
FROM document d;
COMMENT ON VIEW document_status IS 'pending, encoding, ready or failed, for each document.';

CREATE VIEW bank_status WITH (security_invoker = true) AS
SELECT b.tenant_id, t.name AS tenant, b.id AS bank_id, b.name AS bank, b.profile_id,
       (SELECT count(*) FROM document d
        WHERE d.tenant_id = b.tenant_id AND d.bank_id = b.id) AS documents,
       (SELECT count(*) FROM chunk c
        WHERE c.tenant_id = b.tenant_id AND c.bank_id = b.id) AS chunks,
       (SELECT count(*) FROM memory_key k WHERE k.tenant_id = b.tenant_id
        AND k.bank_id = b.id AND k.profile_id = b.profile_id) AS memories,
       (SELECT count(*) FROM outbox o
        WHERE o.tenant_id = b.tenant_id AND o.bank_id = b.id) AS pending,
       (SELECT count(*) FROM dead_letter l
        WHERE l.tenant_id = b.tenant_id AND l.bank_id = b.id) AS failed
FROM bank b JOIN tenant t ON t.id = b.tenant_id;
COMMENT ON VIEW bank_status IS 'How far each bank is encoded.';

GRANT SELECT ON document_status, bank_status TO membank_worker, membank_admin;
