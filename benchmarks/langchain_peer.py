"""langchain-postgres, for comparison: run by a Python that has it, without Membank's code.

    python langchain_peer.py URL DIMENSIONS COLUMN:TYPE...

The columns hold metadata. Each line on stdin is one of {"make": true}, which creates the table and
prints its name; {"index": true}, which creates its HNSW index; and {"vector", "k", "filter"}, which
is answered with {"ids"}. All settings are the library's defaults.
"""

import json
import sys
from typing import Any

_TABLE = "langchain_peer"


def main() -> None:
    from langchain_core.embeddings import (  # type: ignore[import-not-found, unused-ignore]
        DeterministicFakeEmbedding,
    )
    from langchain_postgres import (  # type: ignore[import-not-found, unused-ignore]
        Column,
        PGEngine,
        PGVectorStore,
    )
    from langchain_postgres.v2.indexes import (  # type: ignore[import-not-found, unused-ignore]
        HNSWIndex,
    )

    url, dimensions, *columns = sys.argv[1:]
    engine, size = PGEngine.from_connection_string(url), int(dimensions)
    kinds = [Column(*column.split(":")) for column in columns]
    store: Any = None
    for line in sys.stdin:
        asked = json.loads(line)
        if "make" in asked:
            engine.init_vectorstore_table(
                _TABLE,
                size,
                metadata_columns=kinds,
                id_column=Column("id", "BIGINT", nullable=False),
                store_metadata=False,
            )
            print(json.dumps({"table": _TABLE}), flush=True)
            continue
        if store is None:
            store = PGVectorStore.create_sync(
                engine,
                DeterministicFakeEmbedding(size=size),
                _TABLE,
                id_column="id",
                metadata_columns=[kind.name for kind in kinds],
                metadata_json_column=None,
            )
        if "index" in asked:
            store.apply_vector_index(HNSWIndex())
            print(json.dumps({"made": True}), flush=True)
            continue
        found = store.similarity_search_by_vector(
            asked["vector"], k=asked["k"], filter=asked["filter"]
        )
        print(json.dumps({"ids": [int(one.id) for one in found]}), flush=True)


if __name__ == "__main__":
    main()
