"""What a process that serves looks at before it begins."""

import sys
import threading
from typing import Any

from app.addresses import Role
from app.bank import schema
from app.errors import MembankError, UnavailableError
from app.settings import settings


def require_safe(log: Any, stop: threading.Event, role: Role) -> None:
    """Wait for the database, and end the process with 1 when it is not fit to be served from."""
    told = False
    while not stop.is_set():
        try:
            schema.require_safe(role)
            return
        except UnavailableError as error:
            if not told:
                log.warning("waits for the database", reason=str(error))
            told = True
        except MembankError as error:
            log.error("does not start", reason=str(error))
            sys.exit(1)
        stop.wait(settings().poll_seconds)
