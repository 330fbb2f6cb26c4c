"""Names in a leaderboard that would execute code or open files of this machine: refused, unless the user gives these files.

Code is given by --plugin, and files of data by --data-root, the folder that contains them.
"""

from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path

from bench.data import sources
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
    named = [(kind, name) for kind in own_file.GROUPS for name in dict.fromkeys(map(attrgetter(kind), board.rows))]
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


def refuse_foreign_data(board: Board, data_root: Path | None) -> None:
    """Refuse rows whose data set the suite does not contain, and data sets that are files outside of `data_root`.

    Nothing is opened for this check.

    Args:
        board: the leaderboard.
        data_root: the folder that the user has given with --data-root; its files are allowed.

    Raises:
        UserError: a name stands for files that the user has not given, or is not declared by the suite.
    """
    declared = dict.fromkeys(block.dataset for block in board.suite.blocks)
    for name in (*declared, *dict.fromkeys(row.dataset for row in board.rows)):
        if name not in declared:
            raise UserError(f"this leaderboard has rows of the dataset {name!r}, which its suite does not contain: {', '.join(declared)}")
        if is_foreign_data(name, data_root):
            raise UserError(
                f"this leaderboard names the dataset {name!r}, files of this machine: if you trust it, give the folder that contains them"
                " by --data-root"
            )


def is_foreign_data(dataset: str, data_root: Path | None) -> bool:
    """Whether the name of a data set leads to files outside of the folder that the user has given with --data-root."""
    place = sources.place(dataset, data_root)
    return place is not None and (data_root is None or not place.resolve().is_relative_to(data_root.resolve()))
