"""Tokens -> pieces of text that can be shown as they come."""

from collections.abc import Sequence
from typing import Any

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class Pieces:
    """Turns tokens into text whose pieces, put together, are the whole answer.

    A character of several tokens comes when its last one does, and white space at the end when
    something follows it, so that an answer never begins or ends with any.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        # Text up to `shown` is out. It is decoded again from `anchor` on, a word before, because
        # some tokenizers drop the space in front of what they take for the first word.
        self._anchor = self._shown = 0
        self._held = ""
        self._begun = False

    def push(self, token: int) -> str:
        """The text that this token completes, which may be none."""
        self._tokens.append(token)
        text = self._new_text()
        if not text or text.endswith(_UNFINISHED):
            return ""
        self._anchor, self._shown = self._shown, len(self._tokens)
        return self._trimmed(text)

    def end(self) -> str:
        """What is left when no token follows."""
        return self._trimmed(self._new_text())

    def _new_text(self) -> str:
        before = self._decoded(self._tokens[self._anchor : self._shown])
        return self._decoded(self._tokens[self._anchor :])[len(before) :]

    def _decoded(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _trimmed(self, text: str) -> str:
        text = self._held + text
        if not self._begun:
            text = text.lstrip()
        shown = text.rstrip()
        self._held = text[len(shown) :]
        self._begun = self._begun or bool(shown)
        return shown


class Stops:
    """Ends a text before the first of some texts that must not be in it.

    What may be the beginning of one is held back until it is known not to be.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = [text for text in texts if text]
        self._held = ""
        self.met = False

    def push(self, piece: str) -> str:
        """What of the text so far can be shown. `met` is True once one has come."""
        text = self._held + piece
        found = [at for at in map(text.find, self._texts) if at >= 0]
        if found:
            self.met, self._held = True, ""
            return text[: min(found)]
        most = max(map(len, self._texts), default=1) - 1
        keep = next((n for n in range(min(most, len(text)), 0, -1) if self._begins(text[-n:])), 0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """What is left when nothing follows."""
        held, self._held = self._held, ""
        return held

    def _begins(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self._texts)
