"""Question files and passages for measurements, made of public data that you have downloaded.

    python -m benchmarks.data squad dev-v2.0.json eval_squad2.jsonl.gz
    python -m benchmarks.data hotpot hotpot_dev_distractor_v1.json eval_hotpot.jsonl.gz -n 437
    python -m benchmarks.data corpus eval_squad2.jsonl.gz eval_hotpot.jsonl.gz corpus_wiki.jsonl.gz

A passage's id follows from its title and text, so one passage has one id in every file.
"""

import argparse
import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def passage(title: str, text: str) -> Row:
    digest = hashlib.sha1(f"{title}\n{text}".encode(), usedforsecurity=False).hexdigest()
    return {"id": f"p_{digest[:12]}", "title": title, "text": text}


def squad(source: Any) -> Iterator[Row]:
    """Rows of SQuAD's JSON, 1.1 or 2.0: each question with the paragraph that it is about."""
    for article in source["data"]:
        for paragraph in article["paragraphs"]:
            text = passage(article["title"].replace("_", " "), paragraph["context"].strip())
            for asked in paragraph["qas"]:
                answers = [answer["text"] for answer in asked["answers"]]
                answerable = not asked.get("is_impossible", False)
                yield _row(
                    f"sq2-{asked['id']}", asked["question"], answers, [text], [text], answerable
                )


def hotpot(source: Any) -> Iterator[Row]:
    """Rows of HotpotQA's distractor JSON: ten paragraphs, of which those with supporting facts
    are gold. Questions to be answered with yes or no are left out."""
    for asked in source:
        if asked["answer"] in ("yes", "no"):
            continue
        texts = {title: passage(title, "".join(said).strip()) for title, said in asked["context"]}
        gold = {title for title, _ in asked["supporting_facts"]}
        if gold <= set(texts):
            right = [text for title, text in texts.items() if title in gold]
            yield _row(
                f"hp-{asked['_id']}",
                asked["question"],
                [asked["answer"]],
                texts.values(),
                right,
                True,
            )


def corpus(rows: Iterable[Row]) -> Iterator[Row]:
    """The passages of question files, each once."""
    seen: set[str] = set()
    for row in rows:
        for one in row["passages"]:
            if one["id"] not in seen:
                seen.add(one["id"])
                yield one


def _row(
    name: str,
    question: str,
    answers: list[str],
    passages: Iterable[Row],
    gold: Iterable[Row],
    answerable: bool,
) -> Row:
    return {
        "id": name,
        "question": question.strip(),
        "answers": list(dict.fromkeys(answers)) if answerable else [],
        "passages": list(passages),
        "gold": [one["id"] for one in gold],
        "answerable": answerable,
    }


def _drawn(rows: Iterable[Row], n: int) -> list[Row]:
    """`n` rows by the digest of their ids, whatever their order."""
    return sorted(rows, key=lambda row: hashlib.sha256(row["id"].encode()).digest())[:n]


def _lines(file: Path) -> Iterator[Row]:
    with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as lines:
        yield from map(json.loads, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=("squad", "hotpot", "corpus"))
    parser.add_argument(
        "files", nargs="+", type=Path, help="what is read, and last what is written"
    )
    parser.add_argument("-n", type=int, help="so many rows, drawn by id; default: all, in order")
    given = parser.parse_args()
    *sources, out = given.files
    if not sources:
        parser.error("give a file to read and a file to write")
    if given.kind == "corpus":
        rows = corpus(row for file in sources for row in _lines(file))
    else:
        make = squad if given.kind == "squad" else hotpot
        rows = (row for file in sources for row in make(json.loads(file.read_text())))
    kept: Iterable[Row] = rows if given.n is None else _drawn(rows, given.n)
    with gzip.open(out, "wt") if out.suffix == ".gz" else out.open("w") as written:
        count = sum(bool(written.write(json.dumps(row, ensure_ascii=False) + "\n")) for row in kept)
    print(f"{out}: {count} rows")


if __name__ == "__main__":
    main()
