"""The parts that a worker's threads take: nothing is lost, and what they give is what one gives."""

from collections.abc import Iterator, Sequence

import pytest

from workers import encoding


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """The texts of each part, with a model of two streams that makes nothing of them."""
    parts: list[list[str]] = []

    def memories(texts: Sequence[str]) -> list[tuple[list[float], bytes]]:
        parts.append(list(texts))
        if any("poison" in text for text in texts):
            raise ValueError("poison")
        return [([float(len(text))], text.encode()) for text in texts]

    monkeypatch.setattr(encoding, "_streams", lambda: 2)
    monkeypatch.setattr(encoding, "_memories", memories)
    encoding._threads.cache_clear()
    yield parts
    encoding._threads().shutdown()
    encoding._threads.cache_clear()


@pytest.mark.parametrize("count", [2, 3, 64, 65])
def test_each_chunk_gets_its_own_memory(taken: list[list[str]], count: int) -> None:
    texts = ["x" * (i * 37 % 101) + str(i) for i in range(count)]
    found = encoding._encode(texts)
    assert [payload.decode() for _, payload in found] == texts
    assert [key for key, _ in found] == [[float(len(text))] for text in texts]
    assert len(taken) == 2
    assert abs(len(taken[0]) - len(taken[1])) <= 1


def test_one_chunk_takes_no_thread(taken: list[list[str]]) -> None:
    assert encoding._encode(["one"]) == [([3.0], b"one")]
    assert encoding._encode([]) == []


def test_what_fails_in_a_part_fails_the_whole(taken: list[list[str]]) -> None:
    with pytest.raises(ValueError, match="poison"):
        encoding._encode(["good", "poison", "better"])
