"""Text as it comes in a request."""

from typing import Annotated

from pydantic import AfterValidator


def _storable(text: str) -> str:
    # JSON can write half a character, which nothing behind it can hold.
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("a character is cut in half: send valid Unicode")
    return text


Text = Annotated[str, AfterValidator(_storable)]
"""Text of whole characters."""
