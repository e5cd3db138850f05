"""What there is, so that not every call asks for what is not there."""

import random
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

_MOST = 40
_SHARE = 0.7
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
    """Names and ids by the parameter that they can stand for; newer ones push out older ones."""

    def __init__(self, chance: random.Random, **values: list[str]) -> None:
        self._chance = chance
        self._values = defaultdict[str, list[str]](list, values)

    def learn(self, body: Any) -> None:
        """Take the names and ids that a response shows, and forget what it deleted."""
        for one in _objects(body):
            if one.get("deleted"):
                for values in self._values.values():
                    values[:] = [value for value in values if value != one["id"]]
            elif "token" in one:
                self._note("key", one["id"])
            elif "groups" in one:
                self._note("name", one["name"])
            elif one.get("object") in _SHOWN:
                self._note(_SHOWN[one["object"]], one["id"])
            if one.get("object") == "vector_store":
                self._note("bank", one["name"])
                self._note("model", one["name"])
            if one.get("object") == "vector_store.search_results.page":
                for result in one["data"]:
                    self._note("document", result["membank"]["document"])

    def _note(self, where: str, value: str) -> None:
        values = self._values[where]
        if value not in values:
            values.append(value)
            del values[:-_MOST]

    def put(self, *parts: Any) -> None:
        """Let most calls name what there is, in all of their parts."""
        if self._chance.random() < _SHARE:
            for part in parts:
                if isinstance(part, dict):
                    self._put(part)

    def _put(self, fields: dict[str, Any]) -> None:
        for name, value in fields.items():
            known = self._values.get(_SAME.get(name, name))
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, dict):
                    self._put(each)
            if known and isinstance(value, str):
                fields[name] = self._chance.choice(known)
            elif known and isinstance(value, list):
                fields[name] = self._chance.choices(known, k=min(len(value), 3))


def _objects(body: Any) -> Iterator[dict[str, Any]]:
    listed = body.get("data") if isinstance(body, dict) else None
    for one in [body, *(listed if isinstance(listed, list) else [])]:
        if isinstance(one, dict):
            yield one
