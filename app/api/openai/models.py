"""The models that a caller may choose: the banks that it may read."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy import Connection

from app.access.identity import Identity
from app.answer.retrieval import Reader
from app.api.http.caller import MayRead
from app.api.http.errors import responses
from app.bank.find import Bank, asked_bank, readable_banks
from app.db.session import Asker, transaction
from app.errors import ModelNotFoundError
from app.settings import settings

router = APIRouter(prefix="/v1", tags=["models"])


class Model(BaseModel):
    """A bank, as OpenAI describes a model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    """All that the caller may read."""

    object: Literal["list"] = "list"
    data: list[Model]


@router.get("/models", responses=responses())
def list_models(who: MayRead) -> ModelList:
    """The banks that the caller may read."""
    with transaction(who.asker) as connection:
        banks = readable_banks(connection, who.asker)
    return ModelList(data=[_model(bank.name, bank, who) for bank in banks])


@router.get("/models/{model:path}", responses=responses(404))
def get_model(model: str, who: MayRead) -> Model:
    """One of them, also with an adapter: BANK@ADAPTER."""
    with transaction(who.asker) as connection:
        bank, _ = chosen(connection, who.asker, model)
    return _model(model, bank, who)


def chosen(connection: Connection, asker: Asker, model: str) -> tuple[Bank, str | None]:
    """The bank and the adapter that a request's `model` names; no adapter: the settings' one.

    Raises ModelNotFoundError for a bank that is not there, or not for the asker, and for an
    adapter that is not there.
    """
    try:
        return asked_bank(connection, asker, model), None
    except ModelNotFoundError:
        bank, at, adapter = model.rpartition("@")
        if not at:
            raise
    return asked_bank(connection, asker, bank), _adapter(adapter)


def reader(who: Identity, model: str) -> tuple[Reader, str | None]:
    """The caller as the reader of what `model` names, and the adapter.

    A name without an @ is looked up when the reader begins. Raises ModelNotFoundError.
    """
    if "@" not in model:
        return Reader(who.asker, model), None
    with transaction(who.asker) as connection:
        bank, adapter = chosen(connection, who.asker, model)  # a bank's name may have an @ in it
    return Reader(who.asker, bank.id), adapter


def _adapter(name: str) -> str:
    """What `name` names among the folders of MEMBANK_ADAPTERS: its names alone can be chosen."""
    if name in ("auto", "none"):
        return name
    folder = settings().adapters
    there = {} if folder is None else {each.name: each for each in folder.expanduser().iterdir()}
    if name not in there or not any(there[name].glob("*.safetensors")):
        raise ModelNotFoundError(f"there is no adapter {name!r} here: leave it out, or auto, none")
    return str(there[name])


def _model(name: str, bank: Bank, who: Identity) -> Model:
    created = 0 if bank.created is None else int(bank.created.timestamp())
    return Model(id=name, created=created, owned_by=who.tenant)
