"""Optuna's storage in the database of the store: every use of it survives what passes by itself, and no trial is added twice."""

import functools
import json
from collections.abc import Callable
from typing import Any

import alembic.util
import optuna
from optuna.storages import RDBStorage
from optuna.storages._rdb import models

from bench.spec.errors import UserError
from bench.storage.database import engine_options, insistent, shown
from bench.tuning.trials import IDENTITY, unreadable

RACES = (AssertionError, alembic.util.CommandError)  # another process writes the version of the tables at the same time
# Methods that Optuna's studies call, directly or through its cache.
USED = (
    "create_new_study", "delete_study", "get_study_id_from_name", "get_study_name_from_id", "get_study_directions", "get_all_studies",
    "get_study_user_attrs", "get_study_system_attrs", "_create_new_trial", "_get_trials",
)  # fmt: skip
NAMED = ("create_new_study", "delete_study", "get_study_id_from_name")  # of these, KeyError means that there is no such study


class Storage(RDBStorage):
    """The storage of all studies in a database. All `USED` methods raise a UserError of one line where the database cannot be used."""

    def _get_prepared_new_trial(self, study_id: int, template_trial: Any, session: Any) -> Any:
        """The new trial, or the stored one with its identity.

        It is called inside the transaction that adds the trial. The transaction may be repeated, although it was carried out, if the
        connection was lost before the answer.
        """
        own = None if template_trial is None else template_trial.user_attrs.get(IDENTITY)
        if own is not None:
            query = session.query(models.TrialModel).join(models.TrialUserAttributeModel).filter(models.TrialModel.study_id == study_id)
            query = query.filter(
                models.TrialUserAttributeModel.key == IDENTITY, models.TrialUserAttributeModel.value_json == json.dumps(own)
            )
            stored = query.first()
            if stored is not None:
                return stored
        return super()._get_prepared_new_trial(study_id, template_trial, session)


def _insistent(name: str) -> Callable[..., Any]:
    plain = getattr(RDBStorage, name)

    @functools.wraps(plain)
    def call(self: Storage, *arguments: Any, **named: Any) -> Any:
        try:
            return insistent(lambda: plain(self, *arguments, **named), self.url)
        except (UserError, optuna.exceptions.DuplicatedStudyError):
            raise
        except Exception as error:
            if isinstance(error, KeyError) and name in NAMED:
                raise
            raise unreadable(self.url, error) from None

    return call


for _name in USED:
    setattr(Storage, _name, _insistent(_name))


def opened(url: str) -> Storage:
    """Open the storage; missing tables are created.

    Args:
        url: database URL of the store.

    Raises:
        UserError: the database cannot be used, or its tables are of another release of Optuna.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return insistent(lambda: Storage(url, engine_kwargs=engine_options(url)), url, also=RACES)
    except RuntimeError as error:
        raise UserError(f"the searches in the store '{shown(url)}' are of another release of Optuna: {error}") from None
