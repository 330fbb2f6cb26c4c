"""Names in a leaderboard that would execute a user's code: refused, unless the user gives the file with --plugin."""

from collections.abc import Iterable
from pathlib import Path

from bench.publishing.board_folder import Board
from bench.spec import own_file
from bench.spec.errors import UserError


def refuse_foreign_code(board: Board, plugins: Iterable[str]) -> None:
    """Refuse a leaderboard with a network or data set that is a file, or an entry point of an installed package.

    Nothing is imported for this check.

    Args:
        board: the leaderboard.
        plugins: the files that the user has given with --plugin; these are allowed.

    Raises:
        UserError: a name stands for code that the user has not given.
    """
    allowed = {Path(file).expanduser().resolve() for file in plugins}
    named = [(kind, getattr(row, kind)) for row in board.rows for kind in own_file.GROUPS]
    for block in board.suite.blocks:
        named += [("dataset", block.dataset), *(("architecture", name) for name in block.architectures)]
    for kind, name in dict.fromkeys(named):
        if own_file.is_own(kind, name):
            file = own_file.file_of(kind, name)
            if file not in allowed:
                raise UserError(
                    f"this leaderboard names the {kind} '{name}', whose code would be executed: if you trust it, give its file by"
                    f" --plugin {file or 'FILE'}"
                )
