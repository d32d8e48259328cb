"""Tables inside Markdown files, between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from dynamask.files import replacing
from dynamask.structures import DynaMaskError


def fill_blocks(document: Path, blocks: Mapping[str, str]) -> None:
    """Replace the content of blocks of a Markdown file.

    Args:
        document: written atomically, and only if it has all the blocks.
        blocks: the new content by the name of the block.

    Raises:
        DynaMaskError: a block is missing.
    """
    text = document.read_text(encoding="utf-8")
    for name, content in blocks.items():
        block = re.compile(rf"(<!-- {re.escape(name)}:begin -->\n).*?(<!-- {re.escape(name)}:end -->)", re.S)
        if not block.search(text):
            raise DynaMaskError(f"{document} has no block {name!r}; add its two markers")
        text = block.sub(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text)
    with replacing(document) as stream:
        stream.write(text.encode("utf-8"))
