DROP VIEW bank_status, document_status;
DROP TABLE dead_letter, outbox, memory_blob, memory_key, chunk, document, bank, encoder_profile,
    group_member, principal_group, principal, tenant;
DROP FUNCTION document_revise(), document_queue(), chunk_queue(), chunk_is_final(),
    current_readers(), current_tenant(), current_principal(), find_tenant(text);
