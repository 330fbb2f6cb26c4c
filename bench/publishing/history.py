"""CHANGELOG.md of a leaderboard: what changed in it, when, and which commits have computed its rows.

`publish` puts an entry on top when rows or suite change. The last line of an entry describes all rows after the change. It follows from
the rows, so that a changelog without the entry of the latest change is found.
"""

import datetime
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.spec.row import Row

if TYPE_CHECKING:
    from bench.publishing.board_folder import Board  # which shows the entries on its page

MOST = 8  # names in one line
_DATE = re.compile(r"^## (\d{4}-\d\d-\d\d)$", re.MULTILINE)
_ENDS_CODE = re.compile(r"[`\x00-\x1f\x7f-\xa0\u2028\u2029]")  # or the line


@dataclass(frozen=True)
class Entry:
    """One entry: `date` in ISO 8601, and its lines."""

    date: str
    lines: tuple[str, ...]


def entries(text: str) -> list[Entry]:
    """The entries of a changelog, the latest first."""
    parts = _DATE.split(text)
    return [
        Entry(date, tuple(line.removeprefix("- ") for line in body.splitlines() if line.startswith("- ")))
        for date, body in zip(parts[1::2], parts[2::2], strict=True)
    ]


def state(board: "Board") -> str:
    """All rows of a leaderboard in one sentence."""
    methods = {row.method for row in board.rows if row.criterion}
    protocols = sorted({row.protocol for row in board.rows})
    commits = Counter((row.version, row.commit) for row in board.rows)
    said = [f"razorbench {_code(version)}, commit {_code(short(commit))} ({_rows(n)})" for (version, commit), n in sorted(commits.items())]
    return f"Now: {_rows(len(board.rows))} of {len(methods)} methods, protocol {', '.join(protocols)}; {'; '.join(said)}"


def short(commit: str) -> str:
    """The first 12 characters of a commit, with its '+' if files were changed."""
    return commit[:12] + "+" * commit[12:].endswith("+")


def updated(text: str, before: "Board | None", after: "Board", today: datetime.date) -> str:
    """The changelog with an entry about a change.

    Args:
        text: the changelog; empty if there is none.
        before: the leaderboard before the change; None if there was none.
        after: the leaderboard after it.
        today: date of the entry.

    Returns:
        The new changelog; the same if neither rows nor suite have changed.
    """
    lines = _changes(before, after)
    if not lines and is_current(text, after):
        return text
    if not text:
        lines = lines or ["This changelog starts here."]
        text = f"# Changelog of the leaderboard `{after.suite.name}`\n"
    title, _, rest = text.partition("\n")
    entry = "\n".join([f"## {today.isoformat()}", "", *(f"- {line}" for line in [*lines, state(after)])])
    return f"{title}\n\n{entry}\n{rest}"


def is_current(text: str, board: "Board") -> bool:
    """Whether the latest entry describes the rows of the leaderboard."""
    found = entries(text)
    return bool(found) and found[0].lines[-1:] == (state(board),)


def _changes(before: "Board | None", after: "Board") -> list[str]:
    if before is None:
        return [f"First published: {_described(after.rows)}"]
    old, new = _different(before.rows, after.rows), _different(after.rows, before.rows)
    parts = {
        "Added": [row for key, row in new.items() if key not in old],
        "Changed": [row for key, row in new.items() if key in old and old[key] != row],
        "Removed": [row for key, row in old.items() if key not in new],
    }
    lines = [f"{what}: {_described(rows)}" for what, rows in parts.items() if rows]
    protocols = [", ".join(sorted({row.protocol for row in board.rows})) for board in (before, after)]
    if protocols[0] != protocols[1]:
        lines.append(f"Protocol: {protocols[1]}, before {protocols[0]}")
    settings = [before.suite.model_dump(), after.suite.model_dump()]
    keys = [key for key in settings[1] if settings[0].get(key) != settings[1][key]]
    return lines + [f"Suite: other {_few(keys)}"] * bool(keys)


def _different(rows: Iterable[Row], others: Iterable[Row]) -> dict[tuple[Any, ...], Row]:
    """Key -> row, without the rows that are the same objects in both: of a large board, nearly all."""
    known = set(map(id, others))
    return {row.identity: row for row in rows if id(row) not in known}


def _described(rows: Iterable[Row]) -> str:
    rows = list(rows)
    pruned = [row for row in rows if row.criterion]
    names = f" of {_few(dict.fromkeys(row.method for row in pruned))}" if pruned else ""
    dense = f"{_rows(len(rows) - len(pruned))} of dense networks"
    return "; ".join([f"{_rows(len(pruned))}{names}"] * bool(pruned) + [dense] * (len(pruned) < len(rows)))


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(map(_code, names[:MOST])) + f" and {len(names) - MOST} more" * (len(names) > MOST)


def _rows(count: int) -> str:
    return f"{count:,} row{'s' * (count != 1)}"


def _code(text: str) -> str:
    """A text as code of Markdown. Names are those of strangers, so characters that end code are replaced."""
    return f"`{_ENDS_CODE.sub('?', text) or '?'}`"
