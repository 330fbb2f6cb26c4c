"""The guard around every call of a method's code in a job."""

from contextlib import AbstractContextManager

import methods
from bench.data import Dataset


def guarded(call: str, dataset: Dataset) -> AbstractContextManager[None]:
    """Context of a call of a method, which may change neither the state of the process nor the data that all methods share.

    Args:
        call: what is called, for the message.
        dataset: the data set of the job.

    Raises:
        methods.Altered: if the call changed one of them.
    """
    splits = {"training": dataset.train, "validation": dataset.validation}
    data = {f"the {name} data": split.inputs for name, split in splits.items() if split}
    return methods.unaltered_process(call, data | {f"the {name} labels": split.targets for name, split in splits.items() if split})
