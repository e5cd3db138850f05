"""What a worker does with an uploaded file: it reads the file and stores its documents."""

from collections.abc import Sequence

from app.bank import uploads
from app.bank.find import asked_bank
from app.db.session import Asker, transaction
from app.errors import NotFoundError
from app.ingest.upload import Splitting, store_upload
from app.queue import outbox
from app.queue.outbox import Work
from app.queue.uploads import awaited, finish
from app.runtime.identity import count_tokens, require_splitting
from app.settings import settings


def store(work: Sequence[Work]) -> int:
    """Store the documents of each file, which triggers then queue; return how many files."""
    return sum(_store(one) for one in work)


def _store(work: Work) -> bool:
    file, asker = work.file or "", Asker("worker", work.tenant)
    try:
        with transaction(asker) as connection:
            upload = awaited(connection, work)
            content = uploads.content(connection, asker, file)
            bank = asked_bank(connection, asker, work.bank)
    except NotFoundError:
        return _dropped(work)
    how = Splitting(count_tokens, settings().max_document_bytes, require_splitting)
    fault = store_upload(bank, file, upload, content, how)
    with transaction(asker) as connection:
        if fault is None:
            return finish(connection, work)
        return finish(connection, work, fault.error, fault.code)


def _dropped(work: Work) -> bool:
    with transaction(Asker("worker", work.tenant)) as connection:
        outbox.take(connection, work)
    return False
