"""The content of the column `hyperparameters`."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.spec.setting import Search, Setting, decoded

values = st.dictionaries(
    st.text(min_size=1, max_size=8), st.one_of(st.integers(), st.floats(allow_nan=False), st.text(max_size=8)), max_size=4
)
fractions = st.floats(0, 1)
settings = st.builds(
    Setting, training=values, criterion=st.none() | values, schedule=st.none() | values, finetune_lr_scale=st.none() | fractions,
    search=st.none() | st.builds(Search, st.integers(1, 99), st.integers(0, 999), fractions, fractions),
)  # fmt: skip


@given(settings)
def test_it_reads_back_exactly(setting: Setting) -> None:
    assert decoded(setting.encoded()) == setting


def test_the_json_is_that_of_the_contract() -> None:
    said = Setting({"lr": 0.1}, {"samples": 7}, {"kind": "gradual"}, 0.1, Search(10, 42, 0.5, 0.625)).encoded()
    assert json.loads(said) == {
        "training": {"lr": 0.1}, "criterion": {"samples": 7}, "schedule": {"kind": "gradual"}, "finetuning": {"lr_scale": 0.1},
        "tuning": {"trials": 10, "epochs": 42, "validation": {"default": 0.5, "tuned": 0.625}},
    }  # fmt: skip


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "7", '{"training": 1}', '{"training": {}, "tuning": {"trials": 1}}', '{"training": {}, "criterion": []}']
)
def test_what_is_no_setting_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a JSON object with the values"):
        decoded(text)
