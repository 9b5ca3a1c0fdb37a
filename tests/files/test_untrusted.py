"""Bounded reading of text, JSON and tensors from untrusted files."""

import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from noiseprop.files import untrusted as reading
from noiseprop.files.untrusted import (
    MAX_JSON_DEPTH,
    MAX_TENSORS_HEADER,
    MAX_TEXT_BYTES,
    open_tensors,
    parse_json,
    read_json,
    read_text,
)

TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)


def depth(value: object) -> int:
    inner = value if isinstance(value, list) else value.values() if isinstance(value, dict) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
).filter(lambda value: depth(value) < MAX_JSON_DEPTH)


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


@given(VALUES)
def test_sound_values_come_through(value):
    assert parse_json(json.dumps({"value": value})) == {"value": value}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("NaN", "NaN is not a finite number"),
        ("[-Infinity]", "-Infinity is not a finite number"),
        ('{"lr": 1e999}', "1e999 is not a finite number"),
        ("0." + "1" * 10**6, "is not a finite number"),
        ("1" + "0" * 400, "is not an integer of 64 bits"),
        ("1" * 10**6, "is not an integer of 64 bits"),
        (str(2**64), "18446744073709551616 is not an integer of 64 bits"),
        (str(-(2**63) - 1), "is not an integer of 64 bits"),
        (deep(10_000), "nested deeper than 16"),
        ('{"a":' * 10_000 + "0" + "}" * 10_000, "nested deeper than 16"),
        (deep(MAX_JSON_DEPTH + 2), "nested deeper than 16"),
        (r'["\ud800"]', "half a character"),
        (r'{"\u001b[2J": 0}', "control characters"),
        (r'[[{"a": ["\u0000"]}]]', "control characters"),
        ("[" + "0," * 1_000_000 + "0]", "about 1,000,001 values, expected at most 1,000,000"),
    ],
    ids=lambda value: value[:12],
)
def test_hostile_texts_are_refused(text, says):
    with pytest.raises(ValueError, match=r"^.{1,200}$") as caught:  # short, and on one line
        parse_json(text)
    assert says in str(caught.value)


def test_values_at_the_limits_are_read():
    assert json.dumps(parse_json(deep(MAX_JSON_DEPTH))) == deep(MAX_JSON_DEPTH)
    assert parse_json(f"[{2**64 - 1}, {-(2**63)}]") == [2**64 - 1, -(2**63)]
    assert parse_json(r'"\ud83d\ude00 \t\n"') == "\U0001f600 \t\n"


def test_depth_does_not_depend_on_the_stack():
    def further(levels: int) -> str:
        if levels:
            return further(levels - 1)
        with pytest.raises(ValueError, match="nested deeper") as caught:
            parse_json(deep(900))
        return str(caught.value)

    assert further(300) == further(0) == "nested deeper than 16"


def test_files_are_bounded_and_regular(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(FileNotFoundError):
        read_text(path)
    path.write_text('{"a": 1}')
    assert read_json(path) == {"a": 1}
    path.write_bytes(b"\xff")
    with pytest.raises(UnicodeDecodeError):
        read_text(path)
    os.truncate(path, MAX_TEXT_BYTES + 1)
    with pytest.raises(ValueError, match=r"^33,554,433 bytes, expected at most 33,554,432$"):
        read_text(path)
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path / "pipe", tmp_path):
        for reads in (read_text, lambda path: open_tensors(path).__enter__()):
            with pytest.raises(ValueError, match="not a regular file"):
                reads(other)


def test_tensors_are_read_unless_the_header_is_too_large(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(2)}, path)
    with open_tensors(path) as tensors:
        assert torch.equal(tensors.get_tensor("a"), torch.ones(2))
    whole = path.read_bytes()
    path.write_bytes((MAX_TENSORS_HEADER + 1).to_bytes(8, "little") + whole[8:])
    with pytest.raises(ValueError, match="a header of 16,777,217 bytes, expected at most"), open_tensors(path):
        pass
    path.write_bytes(whole)
    monkeypatch.setattr(reading, "MAX_TENSORS_HEADER", int.from_bytes(whole[:8], "little") - 1)
    with pytest.raises(ValueError, match="a header of"), open_tensors(path):
        pass


@pytest.mark.parametrize("damage", [b"", b"\0" * 7, b"\x02" + b"\0" * 7 + b"{", b"\x80\x04\x95pickle" * 9])
def test_damaged_tensors_are_value_errors(tmp_path, damage):
    path = tmp_path / "x.safetensors"
    path.write_bytes(damage)
    with pytest.raises(ValueError, match=r"."), open_tensors(path):
        pass
