"""Statements in `.sql` files beside the module that runs them."""

import re
from pathlib import Path

_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_COMMENT = re.compile(r"\A(--.*\n)+")


def statements(module: str) -> dict[str, str]:
    """What the `.sql` file beside a module (its `__file__`) holds, by name, without the comments
    in front.

    In the file `-- name: NAME` begins a statement, and a sentence that says what it does follows.
    """
    _, *parts = _NAME.split(Path(module).with_suffix(".sql").read_text())
    return {
        name: _COMMENT.sub("", body).strip()
        for name, body in zip(parts[::2], parts[1::2], strict=True)
    }
