# SPDX-License-Identifier: MIT
"""How strace writes a call: its arguments taken apart, numbers and flags made integers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from spfemu.trace.problems import TraceError, quote

WORD_MAX = (1 << 64) - 1
_OPENING = {"(": ")", "[": "]", "{": "}"}
_TOKEN = re.compile(
    r"""
      "(?:[^"\\]|\\.)*"             # a string
    | /\*.*?\*/                     # what strace adds to a value
    | (?<=\d)<(?:[^<>]|<[^<>]*>)*>  # what -y adds to a descriptor
    | =>
    | [(\[{)\]},]
    | [^"/(\[{)\]},=<]+
    | .                             # one of these characters alone
    """,
    re.VERBOSE | re.DOTALL,
)
_RESULT = re.compile(
    r"""\s*=\s
    (?P<value>\?|-?\d+|0x[0-9a-fA-F]+)
    (?:<(?:[^<>]|<[^<>]*>)*>(?:\(deleted\))?)?
    (?:\s(?P<errno>E[A-Z0-9]+))?
    (?:\s\((?P<comment>[^()]*)\))*
    (?:\s<(?P<duration>\d+\.\d+)>)?
    \s*$""",
    re.VERBOSE,
)
_COMMENT = re.compile(r"/\*.*?\*/")
_NUMBER = re.compile(r"[+-]?(?:0x[0-9a-fA-F]+|\d+)")
_DESCRIPTOR = re.compile(r"(-?\d+)(?:<((?:[^<>]|<[^<>]*>)*)>)?(\(deleted\))?")
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|[0-7]{1,3}|.)", re.DOTALL)
_CONTROL = {"n": "\n", "t": "\t", "r": "\r", "v": "\v", "f": "\f"}
_NR_ERRNO_MAX = 4095


@dataclass(frozen=True)
class Text:
    """A call as text: its name, arguments and result (None: it never returned)."""

    name: str
    arguments: tuple[str, ...]
    result: int | None
    errno: str | None


def parse_call(name: str, rest: str) -> Text:
    """Take apart what follows "name(": arguments, ")", " = " and a result.

    Raises TraceError.
    """
    arguments, end = split_arguments(rest)
    match = _RESULT.match(rest, end)
    if match is None:
        raise TraceError(f"{name} has no result that strace would print: {quote(rest[end:])}")
    if match["value"] == "?":
        return Text(name, arguments, None, match["errno"])
    return Text(name, arguments, number(match["value"]), match["errno"])


def split_arguments(text: str) -> tuple[tuple[str, ...], int]:
    """Split at the commas up to the closing parenthesis; returns the index behind that too.

    Raises TraceError if there is none.
    """
    arguments: list[str] = []
    closing: list[str] = []
    begin = 0
    for match in _TOKEN.finditer(text):
        piece = match[0]
        if piece in _OPENING:
            closing.append(_OPENING[piece])
        elif closing and piece == closing[-1]:
            closing.pop()
        elif piece in (",", ")") and not closing:
            argument = text[begin : match.start()].strip()
            if argument or arguments or piece == ",":
                arguments.append(argument)
            begin = match.end()
            if piece == ")":
                return tuple(arguments), begin
        elif piece in (")", "]", "}"):
            raise TraceError(f"brackets do not match: {quote(text)}")
    raise TraceError(f"the line is cut: its arguments have no end: {quote(text)}")


def number(text: str) -> int:
    """Return the value of "123", "0x7f" or "-1"; raises TraceError beyond 64 bits."""
    text = _COMMENT.sub("", text).strip()
    if _NUMBER.fullmatch(text) is None or len(text) > 24:
        raise TraceError(f"{quote(text)} is no number of 64 bits")
    value = int(text, 0) if "x" in text else int(text)
    if not -(1 << 63) <= value <= WORD_MAX:
        raise TraceError(f"{quote(text)} is no number of 64 bits")
    return value


def pointer(text: str) -> int:
    """Return an address; "NULL" is 0."""
    return 0 if text == "NULL" else number(text)


def flags(text: str, names: Mapping[str, int], what: str) -> int:
    """Return the value of "NAME|NAME|0x10"; raises TraceError for a name that is not known."""
    value = 0
    for part in _COMMENT.sub("", text).split("|"):
        name = part.strip()
        if name in names:
            value |= names[name]
        elif name and (name[0].isdigit() or name[0] == "-"):
            value |= number(name)
        else:
            raise TraceError(f"{quote(name)} is none of the {what} of x86-64")
    if not -(1 << 31) <= value < 1 << 32:
        raise TraceError(f"{quote(text)} has more than 32 bits of {what}")
    return value & 0xFFFFFFFF


def descriptor(text: str) -> tuple[int, str | None]:
    """Return a file descriptor and, if strace ran with -y, what it refers to."""
    match = _DESCRIPTOR.fullmatch(text)
    if match is None or len(match[1]) > 20:
        raise TraceError(f"{quote(text)} is no file descriptor")
    path = match[2]
    if path is not None:
        path = _ESCAPE.sub(_unescape, path)
    if match[3]:
        path = f"{path} (deleted)"
    return int(match[1]), path


def _unescape(match: re.Match[str]) -> str:
    code = match[1]
    if code[0] == "x" and len(code) == 3:
        return chr(int(code[1:], 16))
    if code[0] in "01234567":
        return chr(int(code, 8))
    return _CONTROL.get(code, code)
