"""`verify --record`: write which rows a maintainer has computed again, and the pages that show it."""

import dataclasses
import datetime

from bench.publishing import board_folder, verified
from bench.publishing.page import overview
from bench.publishing.verify import Sample, Verification


def record(sample: Sample, found: Verification) -> int:
    """Write in verified.csv which rows were computed again, and the files that show it.

    Args:
        sample: the rows.
        found: the result of their comparison; it must agree.

    Returns:
        The number of recorded rows.

    Raises:
        UserError: a file cannot be written.
    """
    today = datetime.datetime.now(datetime.UTC).date()
    new = [one for pair, verdict in zip(found.pairs, found.verdicts, strict=True) if (one := verified.of(pair, verdict, today))]
    board = dataclasses.replace(sample.board, verified=verified.joined(sample.board.verified, new))
    made, index = board_folder.files_of(board), sample.folder.resolve().parent / overview.FILE
    others = {index: overview.overview(index.parent, {sample.folder.resolve().name: made})} if index.is_file() else {}
    board_folder.write(sample.folder, board_folder.changes(sample.folder, made), others)
    return len(new)
