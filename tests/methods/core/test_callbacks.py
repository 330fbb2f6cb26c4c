"""Callbacks and progress: what a record says, that nothing changes, and what an exception leaves."""

import io
import types
import warnings
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import methods
from methods import EpochRecord, Problem, Recipe, fit
from methods.core.callbacks import Progress
from methods.training.map import Map

Data = list[tuple[Tensor, Tensor]]
Make = Callable[..., nn.Sequential]


def noisy() -> nn.Sequential:
    """A network whose training draws random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def test_records_have_the_loss_and_learning_rate_of_each_epoch(batches: Data, mlp: Make) -> None:
    records: list[EpochRecord] = []
    model = mlp()
    methods.train(model, batches, epochs=3, lr=0.2, callbacks=[records.append])
    again, losses, recipe = mlp(), [], Recipe(epochs=3)
    optimizer = torch.optim.SGD(again.parameters(), momentum=0.9, weight_decay=1e-3)
    for step in range(12):
        loss = F.cross_entropy(again(batches[step % 4][0]), batches[step % 4][1])
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        optimizer.param_groups[0]["lr"] = 0.2 * recipe.factor((step + 1) / 13)
        optimizer.step()
    assert [(r.epoch, r.epochs, r.evidence, r.sparsity) for r in records] == [(k, 3, None, 0.0) for k in (1, 2, 3)]
    assert [r.loss for r in records] == pytest.approx([sum(losses[k : k + 4]) / 4 for k in (0, 4, 8)], rel=1e-5)
    assert [r.lr for r in records] == pytest.approx([0.2 * recipe.factor(k / 13) for k in (4, 8, 12)])
    with pytest.raises(FrozenInstanceError):
        records[0].loss = 0.0  # type: ignore[misc]


@pytest.mark.parametrize("method", ["magnitude_gradual", "imp"])
def test_records_of_pruning_count_all_epochs_and_say_the_sparsity(batches: Data, method: str) -> None:
    records: list[EpochRecord] = []
    mask, _ = methods.train_pruned(noisy(), batches, method, sparsity=0.75, epochs=4, callbacks=[records.append])
    assert [r.epoch for r in records] == list(range(1, len(records) + 1))
    assert {r.epochs for r in records} == {len(records)}
    assert len(records) == 4 if method == "magnitude_gradual" else len(records) > 4
    assert records[0].sparsity == 0.0 or method == "imp"
    assert records[-1].sparsity == methods.sparsity_of(mask)


def test_callbacks_do_not_change_the_training(batches: Data) -> None:
    networks = []
    for callbacks in ((), [lambda _: torch.rand(7), lambda _: networks[-1].eval()]):
        networks.append(noisy())
        fit(Problem(networks[-1], batches), Map(), Recipe(epochs=3), callbacks=callbacks)
    assert all(torch.equal(p, q) for p, q in zip(networks[0].parameters(), networks[1].parameters(), strict=True))


def wrong_shape(_: EpochRecord) -> None:
    noisy()(torch.ones(2, 5))


def stop(_: EpochRecord) -> None:
    raise RuntimeError("enough")


@pytest.mark.parametrize(("callback", "message"), [(stop, "^enough$"), (wrong_shape, "mat1 and mat2")])
def test_an_exception_of_a_callback_is_raised_as_it_is_and_the_model_is_as_before(batches: Data, callback: Any, message: str) -> None:
    model = noisy()
    with pytest.raises(RuntimeError, match=message):
        methods.train(model, batches, training="dwf", epochs=3, callbacks=[callback])
    assert list(model.state_dict()) == list(noisy().state_dict())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), noisy().parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"callbacks": print}, "callbacks must be a list of functions of one EpochRecord"),
        ({"callbacks": [Progress]}, "contains the class Progress"),
        ({"callbacks": ["print"]}, "contains a str"),
        ({"progress": "yes"}, "progress must be True or False"),
    ],
)
def test_wrong_callbacks_are_refused(batches: Data, mlp: Make, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        methods.train(mlp(), batches, epochs=1, **options)


# --- the evidence


def test_the_evidence_is_laplace_torchs_log_marginal_likelihood() -> None:
    """After the only epoch: at its weights, and at the prior precisions that it set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from laplace import DiagLaplace
        from laplace.curvature import CurvlinopsGGN

        generator = torch.Generator().manual_seed(1)
        x, y = torch.randn(60, 6, generator=generator, dtype=torch.float64), torch.randint(3, (60,), generator=generator)
        loader = DataLoader(TensorDataset(x, y), batch_size=20)
        model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        records: list[EpochRecord] = []
        options = {"curvature": "ggn", "prior": "layer", "share": 1.0, "memory": 0.0, "burn_in": 0.0, "lr": 0.05}
        posterior = methods.train(model, list(loader), training="spam", epochs=1, callbacks=[records.append], **options)
        prior = torch.cat([posterior.prior[n].expand(p.shape).flatten() for n, p in model.named_parameters()])
        la = DiagLaplace(model, "classification", prior_precision=prior, backend=_exact_diagonal(CurvlinopsGGN))
        la.fit(loader)
    assert records[0].evidence == pytest.approx(float(la.log_marginal_likelihood()))
    assert records[0].evidence < -10.0, "it is the total of 60 samples, not a mean"


def _exact_diagonal(backend: Any) -> Any:
    """laplace-torch's backend with the exact generalised Gauss-Newton diagonal from its own full matrix."""

    class Exact(backend):  # type: ignore[misc]
        def diag(self, x: Tensor, y: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
            loss, full = self.full(x, y, **kwargs)
            return loss, full.diagonal()

    return Exact


def test_evidence_is_none_in_epochs_without_an_update(batches: Data) -> None:
    records: list[EpochRecord] = []
    posterior = methods.train(noisy(), batches, training="spam", epochs=6, burn_in=0.3, frequency=2, callbacks=[records.append])
    assert [r.evidence is not None for r in records] == [False, True, False, True, False, True]
    assert tuple(r.evidence for r in records if r.evidence is not None) == posterior.marginal_likelihood[:-1]


# --- progress


def written(stream: io.StringIO, records: list[EpochRecord]) -> str:
    show = Progress(stream)
    for record in records:
        show(record)
    return stream.getvalue()


RECORDS = [EpochRecord(1, 2, 1.25, 0.1, None, 0.0), EpochRecord(2, 2, 0.5, 0.0123, -1234.56, 0.9)]


def test_progress_is_one_line_on_a_terminal_and_in_a_notebook() -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    notebook = types.new_class("OutStream", (io.StringIO,), {}, lambda ns: ns.update(__module__="ipykernel.iostream"))()
    for stream in (terminal, notebook):
        text = written(stream, RECORDS)
        assert text.count("\n") == 1
        assert text.count("\r") == 2
        assert "epoch 2/2  loss 0.5000  lr 0.012  evidence -1234.6  sparsity 90.0 %  0 s left" in text


def test_progress_is_a_line_per_epoch_in_a_file() -> None:
    text = written(io.StringIO(), RECORDS)
    assert "\r" not in text
    assert [line.split("  ")[0] for line in text.splitlines()] == ["epoch 1/2", "epoch 2/2"]


def test_train_shows_progress_on_stderr_when_asked(batches: Data, mlp: Make, capsys: pytest.CaptureFixture[str]) -> None:
    methods.train(mlp(), batches, epochs=2)
    assert capsys.readouterr() == ("", "")
    methods.train(mlp(), batches, epochs=2, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "epoch 2/2" in err
