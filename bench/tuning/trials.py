"""The trials of a study, stored with Optuna in the database of the store, and what a complete study selects."""

import base64
import contextlib
import dataclasses
import functools
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.spec.digest import digest
from bench.spec.errors import UserError
from bench.spec.setting import Search, Setting
from bench.storage.database import printable, shown
from bench.tuning import selection
from bench.tuning.selection import Measured
from bench.tuning.study import Study

if TYPE_CHECKING:
    import optuna

IDENTITY = "identity"  # user attribute of a trial: equal only for the same candidate on the same seed
STORED: dict[str, tuple[type, ...]] = {  # user attribute of a trial -> types of its values
    "seed": (int,), "epochs": (int, float), "training": (dict,), "samples": (str,), "candidate": (int, type(None)),
}  # fmt: skip


class Trials:
    """The stored trials of a study. If two runs have measured the same candidate on the same seed, the first trial counts."""

    def __init__(self, study: Study, opened: "optuna.Study") -> None:
        self._study, self._opened = study, opened
        self._all = self._read()

    def _read(self) -> "list[optuna.trial.FrozenTrial]":
        """The stored trials, without those that other programs may have added.

        Raises:
            UserError: a trial is damaged.
        """
        found = [trial for trial in self._opened.get_trials(deepcopy=False) if "seed" in trial.user_attrs]
        for trial in found:
            value, has = trial.value, trial.user_attrs
            if not (value is None or isinstance(value, float)) or any(type(has.get(name)) not in kinds for name, kinds in STORED.items()):
                raise unreadable(self._study.storage, ValueError(f"trial {trial.number} of '{self._study.name}' is damaged"))
        return found

    def add(self, done: "optuna.trial.FrozenTrial") -> None:
        """Store a trial, unless the same candidate is stored for the same seed already."""
        done.set_user_attr(IDENTITY, digest([sorted(done.params.items()), done.user_attrs["seed"], done.user_attrs.get("candidate")]))
        self._opened.add_trial(done)
        self._all = self._read()

    def candidate(self, k: int) -> "optuna.trial.FrozenTrial | None":
        """The trial of the k-th candidate on the first seed, or None."""
        return next((t for t in self._all if t.user_attrs.get("candidate") == k), None)

    def screening(self, count: int) -> "list[optuna.trial.FrozenTrial]":
        """The stored trials of the first `count` candidates on the first seed, in order."""
        return [t for k in range(count) if (t := self.candidate(k)) is not None]

    def measured(self, values: dict[str, Any], seed: int) -> "optuna.trial.FrozenTrial | None":
        """The complete trial of a candidate on a seed, or None.

        Args:
            values: the values of the candidate.
            seed: number of the tuning seed, from 0.
        """
        return next((t for t in self._all if is_complete(t) and t.params == values and t.user_attrs["seed"] == seed), None)

    def finalists(self) -> list[dict[str, Any]]:
        """The best candidates other than the defaults, in order. A trial that was stopped early cannot be one."""
        plan, defaults = self._study.rounds, self._study.defaults()
        whole = [t for t in self.screening(plan.screened) if is_complete(t) and t.params != defaults]
        ranked = [t.params for t in sorted(whole, key=lambda t: -float(t.value or 0.0))]
        return [values for k, values in enumerate(ranked) if values not in ranked[:k]][: plan.finalists or 1]

    def confirmed(self) -> list[dict[str, Any]]:
        """The candidates to measure on further seeds, if there are any."""
        return [self._study.defaults(), *self.finalists()]

    def complete(self) -> bool:
        """Whether all trials of the study are stored."""
        plan = self._study.rounds
        if len(self.screening(plan.screened)) < plan.screened:
            return False
        return all(self.measured(values, seed) for values in self.confirmed() for seed in range(1, plan.further + 1))

    def found(self) -> Setting:
        """What a complete study selects: the defaults, unless the gain of a finalist is larger than the noise.

        Raises:
            UserError: a trial is damaged.
        """
        try:
            return self._selected()
        except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError, zlib.error) as error:
            raise unreadable(self._study.storage, error) from None

    def _selected(self) -> Setting:
        study = self._study
        values = study.defaults()
        best = defaults = self._sequence(values)
        most = 0.0
        for candidate in self.finalists():
            sequence = self._sequence(candidate)
            gain = selection.gain(sequence, defaults)
            if gain.believed and gain.mean > most:
                values, best, most = candidate, sequence, gain.mean
        winner = self.measured(values, 0)
        assert winner is not None
        spent = self._spent()
        epochs = sum(int(t.user_attrs["epochs"]) for t in spent)
        chosen = study.setting(values, winner.user_attrs["training"])
        return dataclasses.replace(chosen, search=Search(len(spent), epochs, _mean(defaults), _mean(best)))

    def _spent(self) -> "list[optuna.trial.FrozenTrial]":
        """All trials of this study: those of screening, then those on further seeds."""
        plan = self._study.rounds
        further = [self.measured(v, seed) for v in self.confirmed() for seed in range(1, plan.further + 1)]
        return [*self.screening(plan.screened), *(t for t in further if t is not None)]

    def _sequence(self, values: dict[str, Any]) -> list[Measured]:
        """The measurements of a candidate, that on the first seed first."""
        found = [self.measured(values, seed) for seed in range(self._study.rounds.further + 1)]
        return [Measured(float(t.value or 0.0), unpacked(t.user_attrs["samples"])) for t in found if t is not None]


def unreadable(url: str, error: BaseException) -> UserError:
    """The error for a search that is damaged, or of another release of Optuna."""
    reason = printable(f"{type(error).__name__}: {error}")
    return UserError(f"the store '{shown(url)}' has a search that cannot be read: {reason}; `store clean all` removes searches and rows")


def is_complete(trial: "optuna.trial.FrozenTrial") -> bool:
    """Whether a trial was not stopped early."""
    import optuna

    return trial.state == optuna.trial.TrialState.COMPLETE


def _mean(sequence: list[Measured]) -> float:
    """Mean over the further seeds, if there are any, as in `selection.gain`."""
    used = sequence[1:] or sequence
    return sum(m.value for m in used) / len(used)


def packed(samples: np.ndarray) -> str:
    """The contributions of the validation samples, (n) in [0, 1], as text; rounded to 1/255, which is enough for their variance."""
    return base64.b64encode(zlib.compress(np.round(255 * samples).astype(np.uint8).tobytes())).decode()


def unpacked(text: str) -> np.ndarray:
    """The samples from which `packed` made this text, (n) in [0, 1]."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8) / 255


@functools.cache
def database(url: str) -> "optuna.storages.RDBStorage":
    """Optuna's storage in the database of the store."""
    from bench.tuning import storage

    return storage.opened(url)


def opened(study: Study) -> "optuna.Study":
    """The Optuna study of a study; it is created if necessary."""
    import optuna

    return optuna.create_study(study_name=study.name, storage=database(study.storage), direction="maximize", load_if_exists=True)


def studies(url: str) -> list[str]:
    """The names of all studies in a database."""
    import optuna

    return list(optuna.get_all_study_names(storage=database(url)))


def remove(url: str, names: Iterable[str]) -> None:
    """Remove studies from a database, by name. A study that does not exist is ignored."""
    import optuna

    for name in names:
        with contextlib.suppress(KeyError):
            optuna.delete_study(study_name=name, storage=database(url))
