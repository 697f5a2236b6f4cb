"""Files in which something is wrong: cut, flipped, or with one field changed and all checksums right."""

from __future__ import annotations

import io
import json
import random
import zipfile
from typing import Any

NASTY: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 7, 255, 2**16, 2**31 - 1, 2**31, -(2**31), 2**32, 2**40, 2**63 - 1, 2**63,
    -(2**63), 2**64, 10**30, 0.0, -0.0, 0.5, 1e-45, 1e38, 1e308, float("inf"), float("-inf"), float("nan"), "", "x",
    "a.b", "0", "/", "../x", "\0", "\udcff", "é", "x" * 300, "torch.load", "s0", "Symbol('s0')", [], {}, [None], [-1],
    [[]], {"a": 1}, [1] * 9,
)  # fmt: skip
_WORDS = (0, 1, 2, 3, 4, 8, 0x7F, 0xFF, 0x100, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFF0)


def damaged_bytes(data: bytes, chance: random.Random) -> bytes:
    """Returns bytes that are cut, flipped, overwritten, doubled or moved."""
    held = bytearray(data)
    if not held:
        return bytes(chance.randrange(256) for _ in range(chance.randrange(1, 64)))
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        at, size = chance.randrange(len(held)), chance.choice((1, 2, 4, 8, 64, 512))
        way = chance.randrange(8)
        if way == 0:
            del held[at:]
        elif way in (1, 2):
            held[at] ^= 1 << chance.randrange(8)
        elif way == 3:
            held[at : at + size] = bytes(chance.randrange(256) for _ in range(min(size, len(held) - at)))
        elif way == 4:
            del held[at : at + size]
        elif way == 5:
            held[at:at] = held[at : at + size]
        else:
            at -= at % 4
            held[at : at + 4] = chance.choice(_WORDS).to_bytes(4, "little")[: len(held) - at]
        if not held:
            break
    return bytes(held)


_DEEP = "deep nesting"


def damaged_json(data: bytes, chance: random.Random) -> bytes:
    """Returns JSON in which one value is another, or none, or nested without end."""
    text = json.dumps(_damaged_value(json.loads(data), chance))
    depth = chance.choice((10, 5000, 200_000))
    return text.replace(json.dumps(_DEEP), "[" * depth + "]" * depth).encode()


def _damaged_value(content: Any, chance: random.Random) -> Any:
    """Returns a JSON value with one value of it replaced, removed, doubled, or put in another's place."""
    places: list[tuple[Any, Any]] = []
    pending = [content]
    while pending:
        value = pending.pop()
        keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        for key in keys:
            places.append((value, key))
            pending.append(value[key])
    if not places:
        return chance.choice(NASTY)
    holder, key = chance.choice(places)
    way = chance.randrange(10)
    if way == 0:
        del holder[key]
    elif way == 1 and isinstance(holder, list):
        holder.insert(key, holder[key])
    elif way == 1:
        holder[chance.choice(("x", "", "type", "__enum__", "name", f"{key}_"))] = holder[key]
    elif way == 2:
        other, at = chance.choice(places)
        holder[key] = json.loads(json.dumps(other[at]))
    elif way == 3 and isinstance(holder[key], (int, float)):
        holder[key] = holder[key] + chance.choice((-1, 1, 2**31, -(2**31), 0.5))
    elif way == 4 and isinstance(holder[key], str) and holder[key]:
        text, at = holder[key], chance.randrange(len(holder[key]))
        holder[key] = text[:at] + chance.choice(("", "x", "0", "(", ".", "'", "\n", "9" * 20)) + text[at + 1 :]
    elif way == 5:
        holder[key] = _DEEP
    else:
        holder[key] = chance.choice(NASTY)
    return content


def damaged_text(data: bytes, chance: random.Random) -> bytes:
    """Returns source with one word replaced by another of it, or by one that is none."""
    words = data.replace(b"(", b" ( ").replace(b")", b" ) ").split(b" ")
    at = chance.randrange(len(words))
    words[at] = chance.choice(
        [b"", b"x", b"(", b")", b"-1", b"99999999999999999999", b"1e999", b"None", chance.choice(words)]
    )
    return b" ".join(words)


def damaged_archive(data: bytes, chance: random.Random) -> bytes:
    """Returns a ZIP archive with one member damaged, left out, renamed or doubled, and its checksums right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        held = [(name, archive.read(name)) for name in archive.namelist()]
    # what is read closely is damaged more often than plain numbers
    weights = [1 if len(raw) > 16 and name.rpartition("/")[2].isdigit() else 8 for name, raw in held]
    (at,) = chance.choices(range(len(held)), weights)
    name, raw = held[at]
    way = chance.randrange(20)
    if way == 0:
        del held[at]
    elif way == 1:
        held[at] = (chance.choice([f"{name}x", name.rpartition("/")[2], "../" + name, name.upper(), "é" + name]), raw)
    elif way == 2:
        other = chance.choice(held)
        held[at] = (name, other[1])
    elif name.endswith(".json") and way < 17:
        try:
            changed = damaged_json(raw, chance)
        except (ValueError, RecursionError):
            changed = damaged_bytes(raw, chance)
        held[at] = (name, changed)
    elif name.endswith(".py") and way < 17:
        held[at] = (name, damaged_text(raw, chance))
    else:
        held[at] = (name, damaged_bytes(raw, chance))
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for member, content in held:
            info = zipfile.ZipInfo(member, (1980, 1, 1, 0, 0, 0))
            pad = -(made.tell() + 34 + len(member.encode("utf-8", "replace"))) % 64
            info.extra = b"FB" + pad.to_bytes(2, "little") + b"Z" * pad
            archive.writestr(info, content)
    return made.getvalue()


def damaged_message(message: Any, chance: random.Random) -> None:
    """Changes one field of a protocol buffer, somewhere in it."""
    places: list[tuple[Any, Any]] = []
    pending = [message]
    while pending:
        value = pending.pop()
        for field, held in value.ListFields():
            places.append((value, field))
            if field.type == field.TYPE_MESSAGE:
                pending += list(held) if field.is_repeated else [held]
    holder, field = chance.choice(places)
    if chance.random() < 0.1:
        holder.ClearField(field.name)
        return
    if field.is_repeated:
        values = getattr(holder, field.name)
        at, way = chance.randrange(len(values)), chance.randrange(4)
        if way == 0:
            del values[at]
        elif way == 1:
            values.extend([values[at]])
        elif field.type != field.TYPE_MESSAGE:
            values[at] = _changed(values[at], chance)
        elif len(values) > 1:
            kept = [type(v).FromString(v.SerializeToString()) for v in values]
            chance.shuffle(kept)
            del values[:]
            values.extend(kept)
    elif field.type != field.TYPE_MESSAGE:
        setattr(holder, field.name, _changed(getattr(holder, field.name), chance))


def _changed(value: Any, chance: random.Random) -> Any:
    """Returns another value that a field of the same type can hold."""
    if isinstance(value, bytes):
        return damaged_bytes(value, chance)
    if isinstance(value, str):
        return chance.choice(
            ("", "x", f"{value}x", value[:-1], "a" * 200, "é", "ai.evil", "Conv", "Loop", "x", "c0", "c1")
        )
    if isinstance(value, float):
        return chance.choice((0.0, -1.0, 1e38, float("inf"), float("nan"), 1e-45))
    return chance.choice((-1, 0, 1, 2, 3, 5, 7, 16, 100, 255, 65536, 2**31 - 1, -(2**31), value + 1, value - 1)) if (
        chance.random() < 0.8
    ) else chance.choice((2**31 - 1, -2))  # fmt: skip
