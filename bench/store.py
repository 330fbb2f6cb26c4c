"""What was computed, kept by content: rows in a database, networks beside it.

Rows live in any database SQLAlchemy speaks to (SQLite by default); one process writes them. Networks are safetensors files,
written whole or not at all, never pickles. Both are found by the digest of all that decides them (see `bench.planning`).
"""

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, MetaData, String, Table, Text, create_engine, delete, insert, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from bench.spec import Row, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from methods import Posterior

DEFAULT_URL = "sqlite:///.bench/store.db"
_metadata = MetaData()
_rows = Table("rows", _metadata, Column("key", String(64), primary_key=True), Column("status", String(16)), Column("row", Text))


class Store:
    """Rows by key. Raises UserError where the database cannot be reached; a SQLite file is made where it is not there."""

    def __init__(self, url: str = DEFAULT_URL) -> None:
        try:
            parsed = make_url(url)
            if parsed.get_backend_name() == "sqlite" and parsed.database and parsed.database != ":memory:":
                file = Path(parsed.database).resolve()  # the same one in a worker, wherever that stands
                file.parent.mkdir(parents=True, exist_ok=True)
                parsed = parsed.set(database=str(file))
            self.url = parsed.render_as_string(hide_password=False)
            self._engine = create_engine(parsed)
            _metadata.create_all(self._engine)
        except (ArgumentError, NoSuchModuleError, ImportError, SQLAlchemyError, OSError) as error:
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise UserError(f"cannot open the store '{url}': {reason} (expected a database URL such as {DEFAULT_URL})") from None

    def get(self, keys: Iterable[str]) -> dict[str, Row]:
        """The rows there are for these keys."""
        wanted, found = list(keys), {}
        with self._engine.connect() as connection:
            for i in range(0, len(wanted), 500):
                query = select(_rows.c.key, _rows.c.row).where(_rows.c.key.in_(wanted[i : i + 500]))
                found.update({key: Row(**json.loads(text)) for key, text in connection.execute(query)})
        return found

    def put(self, rows: dict[str, Row]) -> None:
        """Write rows, all or none; a row that was there is replaced."""
        values = [{"key": k, "status": r.status, "row": json.dumps(dataclasses.asdict(r))} for k, r in rows.items()]
        if not values:
            return
        with self._engine.begin() as connection:
            connection.execute(delete(_rows).where(_rows.c.key.in_(list(rows))))
            connection.execute(insert(_rows), values)


class Networks:
    """Trained networks by key, as safetensors files in one folder that all workers reach."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        """The file of one network."""
        return self.folder / f"{key}.safetensors"

    def has(self, key: str) -> bool:
        """Whether the network is there."""
        return self.path(key).is_file()

    def save(self, key: str, state: "dict[str, Tensor]", posterior: "Posterior", facts: dict[str, Any]) -> None:
        """Write the network's state, what its training left, and plain facts about it (JSON-able)."""
        from safetensors.torch import save_file

        tensors = {f"model.{n}": t.contiguous().clone() for n, t in state.items()}
        tensors |= {f"prior.{n}": t.contiguous().clone() for n, t in posterior.prior.items()}
        tensors |= {f"curvature.{n}": t.contiguous().clone() for n, t in posterior.curvature.items()}
        for k, part in enumerate(("outer", "inner")):
            tensors |= {f"{part}.{n}": factors[k].contiguous().clone() for n, factors in posterior.factors.items()}
        scalars = {
            "samples": posterior.samples,
            "temperature": posterior.temperature,
            "marginal_likelihood": posterior.marginal_likelihood,
        }
        metadata = {"posterior": json.dumps(scalars), "facts": json.dumps(facts)}
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self.folder, suffix=".part")
        os.close(handle)
        try:
            save_file(tensors, temporary, metadata=metadata)
            os.replace(temporary, self.path(key))
        finally:
            Path(temporary).unlink(missing_ok=True)

    def load(self, key: str) -> "tuple[dict[str, Tensor], Posterior, dict[str, Any]]":
        """State, posterior and facts of one network, on the CPU. Raises FileNotFoundError where it is not there."""
        from safetensors import safe_open

        from methods import Posterior

        parts: dict[str, dict[str, Tensor]] = {"model": {}, "prior": {}, "curvature": {}, "outer": {}, "inner": {}}
        with safe_open(self.path(key), framework="pt") as file:
            metadata = file.metadata()
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                part, _, rest = name.partition(".")
                parts[part][rest] = file.get_tensor(name)
        scalars = json.loads(metadata["posterior"])
        scalars["marginal_likelihood"] = tuple(scalars["marginal_likelihood"])
        factors = {n: (b, parts["inner"][n]) for n, b in parts["outer"].items()}
        posterior = Posterior(parts["prior"], curvature=parts["curvature"], factors=factors, **scalars)
        return parts["model"], posterior, json.loads(metadata["facts"])
