"""Search in a vector store."""

from itertools import chain, zip_longest
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.answer.retrieval import Reader, find
from app.api.http.caller import MayRead
from app.api.http.conditions import Filters
from app.api.http.errors import responses
from app.api.http.fields import Storable
from app.api.openai.store_files import Content, attributes_of
from app.api.openai.vector_stores import known, number_of
from app.bank.entries import entry_id, metadata
from app.bank.filters import Filter, parse
from app.db.session import transaction
from app.errors import FilterError
from app.search.search import Passage

router = APIRouter(prefix="/v1/vector_stores", tags=["vector stores"])

_QUERIES = 10
Words = Annotated[Storable, Field(min_length=1, max_length=100_000)]


class Ranking(BaseModel):
    """score_threshold: cosine below which a passage does not count. The ranker is the bank's."""

    ranker: str | None = None
    score_threshold: Annotated[float, Field(ge=-1, le=1)] | None = None


class SearchRequest(BaseModel):
    """One question or several, and what the attributes of the files must be."""

    query: Words | Annotated[list[Words], Field(min_length=1, max_length=_QUERIES)]
    max_num_results: Annotated[int, Field(ge=1, le=50)] = 10
    filters: Filters | None = None
    ranking_options: Ranking | None = None
    rewrite_query: bool | None = None

    @property
    def queries(self) -> list[str]:
        return [self.query] if isinstance(self.query, str) else self.query

    @property
    def least(self) -> float:
        ranking = self.ranking_options or Ranking()
        return -1.0 if ranking.score_threshold is None else ranking.score_threshold


class Place(BaseModel):
    """Where a passage stands: the document, its title, the heading above, and characters from 0."""

    document: str
    title: str
    heading: str
    start: int
    end: int


class Result(BaseModel):
    """A passage. `score` is the cosine of question and passage, -1 to 1; the order is by words as
    well."""

    file_id: str
    filename: str
    score: float
    attributes: dict[str, str | int | float | bool]
    content: list[Content]
    membank: Place


class ResultPage(BaseModel):
    """The passages that fit best."""

    object: Literal["vector_store.search_results.page"] = "vector_store.search_results.page"
    search_query: list[str]
    data: list[Result]
    has_more: Literal[False] = False
    next_page: None = None


@router.post("/{vector_store_id}/search", responses=responses(404))
def search_store(vector_store_id: str, body: SearchRequest, who: MayRead) -> ResultPage:
    """The passages that fit a question best, of those that the caller may read. Several questions
    take turns."""
    store = number_of(vector_store_id)
    with transaction(who.asker) as connection:
        known(connection, who.asker, vector_store_id)
    reader = Reader(who.asker, store)
    where = _parsed(body.filters)
    found = [
        find(reader, query, body.max_num_results, body.least, where).passages
        for query in body.queries
    ]
    turns = (passage for passage in chain(*zip_longest(*found)) if passage is not None)
    passages = list({passage.id: passage for passage in turns}.values())[: body.max_num_results]
    with transaction(who.asker) as connection:
        ids = [passage.document_id for passage in passages]
        held = metadata(connection, who.asker, store, ids)
    # What was forgotten since it was found is left out.
    data = [_result(p, held[p.document_id]) for p in passages if p.document_id in held]
    return ResultPage(search_query=body.queries, data=data)


def _parsed(filters: dict[str, Any] | None) -> Filter | None:
    try:
        return None if filters is None else parse(filters)
    except RecursionError:
        raise FilterError("the filter is nested too deep: write it flatter") from None


def _result(passage: Passage, held: dict[str, Any]) -> Result:
    return Result(
        file_id=passage.file_id or entry_id(passage.document_id),
        filename=passage.source,
        score=passage.score,
        attributes=attributes_of(held),
        content=[Content(text=passage.text)],
        membank=Place(
            document=passage.document_id,
            title=passage.title,
            heading=passage.heading,
            start=passage.start,
            end=passage.end,
        ),
    )
