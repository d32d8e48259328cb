"""Hypothesis strategies that damage valid inputs: JSON documents, files and numbers, and values that break readers."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

DEEP, LONG_INTEGER = "\x01deep", "\x01integer"
"""Strings that :func:`json_bytes` replaces by what ``json.dumps`` cannot write."""
NUMBERS = (
    *(0, 1, -1, 2, 3, 5, 14, 28, 255, 256, 65_535, 65_536, 10**6, 2**31 - 1, 2**31, 2**32, 2**53, 2**53 + 1, 2**63),
    *(2**64, 10**30, 10**400, -(10**400), -(2**31) - 1, -(2**63) - 1, 0.5, 1.5, -0.0, 1e-7, 5e-324, 1e10, 1e38, 1e39),
    *(1.7e308, -1.7e308, math.nan, math.inf, -math.inf),
)
TEXTS = (
    *(
        "",
        " ",
        "0",
        "1",
        "-1",
        "1.0",
        "1e3",
        "nan",
        "inf",
        "NaN",
        "true",
        "null",
        "None",
        "\0",
        "a\0b",
        "\ud800",
        "a\udfff",
    ),
    *(
        "\n",
        "a\nb",
        "\r\u2028\x1b[31m",
        "٣",
        "𝟙",
        "é",
        "e\u0301",
        "\ufeff",
        "/",
        "..",
        "../..",
        "/etc/passwd",
        "/dev/null",
    ),
    *("x" * 300, "x" * 70_000, "%s", "{}", "--", "-", "@", "id", "__class__", "<script>", DEEP, LONG_INTEGER),
)
EMPTY = (None, True, False, [], {}, [[]], [None], [[[]]], {"": None}, [0] * 3, [0] * 4, [0.5] * 1000, [[0] * 6])


def hostile_values() -> st.SearchStrategy:
    """JSON values that readers forget: wrong types, huge and undefined numbers, surrogates, nesting, random JSON."""
    return st.one_of(
        st.sampled_from(NUMBERS),
        st.sampled_from(TEXTS),
        st.sampled_from(EMPTY).map(copy.deepcopy),
        st.integers(1, 400).map(nested),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        json_values(),
    )


def json_values() -> st.SearchStrategy:
    """Random JSON."""
    leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
    names = st.sampled_from(("id", "size", "counts", "bbox", "file_name", "")) | st.text(max_size=3)
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=3), max_leaves=8
    )


def nested(depth: int) -> list:
    """Lists in lists."""
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@st.composite
def mutated(draw: st.DrawFn, documents: Sequence[Any], most: int = 3) -> Any:
    """One of the documents (nested dicts and lists) with up to ``most`` changes anywhere in it."""
    holder = [copy.deepcopy(draw(st.sampled_from(documents)))]
    for _ in range(draw(st.integers(0, most))):
        _change(draw, *_place(draw, holder))
    return holder[0]


def _place(draw: st.DrawFn, holder: list) -> tuple[Any, Any]:
    """A container in the document and a key in it, at any depth."""
    container: Any = holder
    while True:
        key = draw(st.integers(0, len(container) - 1)) if isinstance(container, list) else draw(_keys(container))
        inner = container[key]
        if not isinstance(inner, list | dict) or not inner or draw(st.integers(0, 3)) == 3:
            return container, key
        container = inner


def _keys(container: dict) -> st.SearchStrategy:
    return st.sampled_from(list(container))


def _change(draw: st.DrawFn, container: Any, key: Any) -> None:
    """Replace, remove, repeat or disturb one value."""
    action = draw(st.sampled_from(("replace", "replace", "remove", "repeat", "disturb", "disturb", "rename")))
    value = container[key]
    if action == "disturb":
        container[key] = draw(_disturbed(value))
    elif action == "remove" and len(container) > 1:
        del container[key]
    elif action == "repeat" and isinstance(container, list):
        container.insert(key, copy.deepcopy(value))
    elif action == "rename" and isinstance(container, dict):
        container[draw(st.sampled_from(TEXTS))] = container.pop(key)
    else:
        container[key] = draw(hostile_values())


def _disturbed(value: Any) -> st.SearchStrategy:
    """Values near to one: other numbers and types for numbers, damaged text for text, other lengths for lists."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | list | tuple):
        return st.sampled_from((None, True, str(value), [value], {"a": value}))
    if isinstance(value, int | float) and not abs(value) < 2**60:
        return st.sampled_from((-value, [value]))
    if isinstance(value, int | float):
        return st.sampled_from(
            (-value, value + 1, value - 1, value + 0.5, value * 1000, float(value), str(value), [value])
        )
    if isinstance(value, str):
        return st.binary(max_size=1).map(
            lambda byte: value[: len(value) // 2] + byte.decode("latin-1")
        ) | st.sampled_from((value[1:], value + value, value.upper(), value + "\0", value + "\ud800", " " + value))
    return st.sampled_from((value[1:], value + value, [*value, None], [value], dict(enumerate(map(str, value)))))


def json_bytes(value: Any) -> bytes:
    """A document as a JSON file, with nesting and integers that exceed what ``json.dumps`` writes."""
    text = json.dumps(value)
    text = text.replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000)
    return text.replace(json.dumps(LONG_INTEGER), "9" * 5000).encode()


@st.composite
def damaged(draw: st.DrawFn, contents: st.SearchStrategy, header: int | None = None) -> bytes:
    """Bytes with flipped bits, a part cut out, repeated or overwritten, or cut off.

    Args:
        header: damage only this many bytes at the start.
    """
    data = bytearray(draw(contents))
    for _ in range(draw(st.integers(1, 4))):
        end = min(len(data), header or len(data))
        if not end:
            break
        start = draw(st.integers(0, end - 1))
        action = draw(st.sampled_from(("flip", "flip", "cut", "repeat", "insert", "truncate")))
        length = draw(st.integers(1, 16))
        if action == "flip":
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif action == "cut":
            del data[start : start + length]
        elif action == "repeat":
            data[start:start] = data[start : start + length]
        elif action == "insert":
            data[start:start] = draw(st.binary(min_size=1, max_size=16))
        elif draw(st.booleans()):
            del data[start:]
    return bytes(data)


def json_files(documents: Sequence[Any]) -> st.SearchStrategy:
    """JSON files: changed documents, documents with damaged bytes, other encodings, and random JSON and bytes."""
    changed = mutated(documents).map(json_bytes)
    return st.one_of(
        changed,
        changed,
        changed,
        damaged(changed),
        changed.map(lambda data: data.decode().encode("utf-16")),
        changed.map(lambda data: b"\xef\xbb\xbf" + data),
        hostile_values().map(json_bytes),
        st.binary(max_size=40),
    )
