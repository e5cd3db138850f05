"""What there is, so that not every call asks for what is not there."""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

ATTRIBUTES = {"team": "hr", "year": 2024, "draft": False, "weight": 0.5}
_MOST = 40
_SHARE = 0.75
# Fields of bodies and queries that name what a parameter of a path has another name for.
_SAME = {
    "after": "file_id",
    "before": "file_id",
    "file_ids": "file_id",
    "principal": "name",
    "groups": "group",
    "allow": "access",
}
# What responses show, by the kind of object.
_SHOWN = {
    "file": "file_id",
    "vector_store": "vector_store_id",
    "vector_store.file": "file_id",
    "vector_store.files_batch": "batch_id",
}


class Known:
    """Names and ids by the parameter that they can stand for.

    What is given is chosen as often as all that was learnt; newer ones push out older ones.
    """

    def __init__(self, chance: random.Random, **given: list[str]) -> None:
        self._chance, self._given = chance, given
        self._learnt = defaultdict[str, list[str]](list)
        self._of_store: dict[str, str] = {}
        self._stores: dict[str, str] = {}

    def learn(self, body: Any) -> None:
        """Take the names and ids that a response shows, and forget what it deleted."""
        for one in _objects(body):
            kind = str(one.get("object"))
            if one.get("deleted"):
                self._forget({one["id"], self._stores.get(one["id"], "")})
            elif "token" in one:
                self._note("key", one["id"])
            elif "groups" in one:
                self._note("name", one["name"])
            elif kind in _SHOWN:
                self._note(_SHOWN[kind], one["id"])
            if kind == "vector_store":
                self._stores[one["id"]] = one["name"]
                self._note("bank", one["name"])
                self._note("model", one["name"])
            elif "vector_store_id" in one:
                self._of_store[one["id"]] = one["vector_store_id"]
            elif kind == "vector_store.search_results.page":
                for result in one["data"]:
                    self._note("document", result["membank"]["document"])

    def put(self, *parts: Any) -> None:
        """Let most calls name what there is, in all of their parts."""
        if self._chance.random() < _SHARE:
            for part in parts:
                if isinstance(part, dict):
                    self._put(part)

    def _note(self, where: str, value: str) -> None:
        values = self._learnt[where]
        if value not in values:
            values.append(value)
            del values[:-_MOST]

    def _forget(self, gone: set[str]) -> None:
        for values in self._learnt.values():
            values[:] = [value for value in values if value not in gone]

    def _put(self, fields: dict[str, Any]) -> None:
        if "value" in fields:  # a condition on attributes, whose `key` is none of the service's
            fields["key"] = self._chance.choice([*ATTRIBUTES, "unknown"])
            return
        for name, value in fields.items():
            where = _SAME.get(name, name)
            if name == "attributes" and isinstance(value, dict):
                fields[name] = dict(self._chance.sample([*ATTRIBUTES.items()], 2))
            elif isinstance(value, list) and (one := self._one(where)):
                fields[name] = [one for _ in value[:3]]
            elif isinstance(value, str):
                fields[name] = self._one(where) or value
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, dict):
                    self._put(each)
        for name in ("file_id", "batch_id"):
            if "vector_store_id" in fields and fields.get(name) in self._of_store:
                fields["vector_store_id"] = self._of_store[fields[name]]

    def _one(self, where: str) -> str | None:
        given, learnt = self._given.get(where), self._learnt[where]
        some = given if given and (not learnt or self._chance.random() < 0.5) else learnt
        return self._chance.choice(some) if some else None


def _objects(body: Any) -> Iterator[Mapping[str, Any]]:
    listed = body.get("data") if isinstance(body, dict) else None
    for one in [body, *(listed if isinstance(listed, list) else [])]:
        if isinstance(one, dict):
            yield one
