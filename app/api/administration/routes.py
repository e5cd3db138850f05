"""Administration of the caller's own tenant, for keys and tokens with the scope admin.

It uses the role membank_admin, which policies do not bind: every function here is given the tenant
that the caller's key names, and nothing in a request can name another.
"""

from fastapi import APIRouter

from app.api.administration import banks, keys, people, records, work

PREFIX = "/v1/membank"
router = APIRouter(prefix=PREFIX, tags=["administration"])
for each in (people, banks, keys, work, records):
    router.include_router(each.router)
