ALTER POLICY reader ON memory_blob USING (EXISTS (SELECT FROM memory_key k
    WHERE k.tenant_id = memory_blob.tenant_id AND k.chunk_id = memory_blob.chunk_id
    AND k.profile_id = memory_blob.profile_id));
ALTER POLICY reader ON chunk USING (EXISTS (SELECT FROM document d
    WHERE d.tenant_id = chunk.tenant_id AND d.bank_id = chunk.bank_id
    AND d.id = chunk.document_id));
