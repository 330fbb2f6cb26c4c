"""Data as people have them: loaders without a length, empty batches, wrong structures, and losses and networks that fail."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import methods
from tests.methods.entries import alone

Make = Callable[..., nn.Sequential]
Data = list[tuple[Tensor, Tensor]]


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """40 samples without a length."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(40):
            yield torch.randn(6, generator=generator), torch.randint(3, (), generator=generator)


def test_a_loader_without_a_length_is_a_list_of_its_batches(mlp: Make) -> None:
    loader = DataLoader(Stream(), batch_size=8)
    for training in ("map", "spam"):
        streamed, listed = mlp(), mlp()
        assert methods.train(streamed, loader, training, epochs=2).samples == 40
        methods.train(listed, list(loader), training, epochs=2)
        assert all(torch.equal(a, b) for a, b in zip(streamed.parameters(), listed.parameters(), strict=True))
    assert methods.prune(mlp(), loader, "obd", sparsity=0.5)
    assert methods.train_pruned(mlp(), loader, sparsity=0.5, epochs=10)


@pytest.mark.parametrize("name", [n for n in alone() if n != "synflow"])
def test_empty_batches_are_left_out(mlp: Make, batches: Data, name: str) -> None:
    with_empty = [(batches[0][0][:0], batches[0][1][:0]), *batches, (batches[0][0][:0], batches[0][1][:0])]
    wanted, found = (methods.scores(mlp(), data, name) for data in (batches, with_empty))
    assert all(torch.equal(found[n], s) for n, s in wanted.items())


def test_only_empty_batches_or_none_are_refused(mlp: Make, batches: Data) -> None:
    empty = [(batches[0][0][:0], batches[0][1][:0])]
    for name in [n for n in alone() if not methods.lookup("criteria", n).data_free]:
        for data in (empty, []):
            with pytest.raises(ValueError, match=r"^there are no training samples: the batches are empty$"):
                methods.prune(mlp(), data, name, sparsity=0.5)
    with pytest.raises(ValueError, match=r"^there are no samples to train on: the batches are empty$"):
        methods.train(mlp(), empty, epochs=1)


X, Y = torch.randn(9, 6, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3  # every class: Y + 1 has one that does not exist
PAIRS = "batches must be pairs (inputs, targets) of tensors with one row per sample; "
STRUCTURES: list[tuple[Any, str]] = [
    (DataLoader(TensorDataset(X, Y, torch.ones(9)), batch_size=9), PAIRS + "one has 3 parts"),
    ([{"x": X, "y": Y}], PAIRS + "one is a dict with the keys x, y"),
    ([X], PAIRS + "one is a Tensor"),
    (TensorDataset(X, Y), "batches is a data set: pass torch.utils.data.DataLoader(dataset, batch_size=...)"),
    ([(X.numpy(), Y.numpy())], PAIRS + "the inputs of one are a ndarray: convert them, e.g. with torch.as_tensor"),
    ([(X, Y.tolist())], PAIRS + "the targets of one are a list"),
    ([((X, X), Y)], PAIRS + "the inputs of one are a tuple: wrap the network in a module that takes a single tensor"),
    ([(X, Y[:4])], PAIRS + "one has 9 inputs and 4 targets"),
    ([(X[0], Y[0])], PAIRS + "one holds a single sample"),
    (7, "batches must be an iterable of (inputs, targets), not a int"),
    (iter([(X, Y)]), "batches must be re-iterable (a list, a DataLoader)"),
]


@pytest.mark.parametrize(("data", "message"), STRUCTURES)
def test_other_structures_are_named(mlp: Make, data: Any, message: str) -> None:
    for call in (lambda: methods.train(mlp(), data, epochs=1), lambda: methods.prune(mlp(), data, "obd", sparsity=0.5)):
        with pytest.raises(ValueError, match="^" + re.escape(message)) as error:
            call()
        assert "\n" not in str(error.value)


def test_tensors_made_in_inference_mode_and_calls_without_gradients_work(mlp: Make) -> None:
    with torch.inference_mode():
        made = X * 2
    with torch.no_grad():
        model = mlp()
        methods.train(model, [(made, Y)], epochs=2)
        mask = methods.prune(model, [(made, Y)], "snip", sparsity=0.5)
    plain = mlp()
    methods.train(plain, [(X * 2, Y)], epochs=2)
    assert all(torch.equal(m, mask[n]) for n, m in methods.prune(plain, [(X * 2, Y)], "snip", sparsity=0.5).items())


class Returns(nn.Module):
    """Returns its logits inside something else."""

    def __init__(self, pack: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.pack = nn.Linear(6, 3), pack

    def forward(self, x: Tensor) -> Any:
        return self.pack(self.layer(x))


FAILURES: list[tuple[Callable[[], nn.Module], Any, Any, str]] = [
    (lambda: nn.Linear(6, 3), [(X.double(), Y)], F.cross_entropy, "the network fails on inputs of type float64 and shape "),
    (lambda: nn.Sequential(nn.Linear(6, 4), nn.Linear(5, 3)), [(X, Y)], F.cross_entropy, "the network fails on inputs of type float32"),
    (lambda: nn.Linear(6, 3), [(X, Y + 1)], F.cross_entropy, "the loss fails on outputs of type float32 and shape "),
    (lambda: nn.Linear(6, 3), [(X, Y.int())], F.cross_entropy, "the loss fails on outputs of type float32 and shape "),
    (lambda: Returns(lambda f: (f, f)), [(X, Y)], F.cross_entropy, "the network returns a tuple, not a tensor, and the loss fails on it"),
    (
        lambda: Returns(lambda f: {"out": f}),
        [(X, Y)],
        F.cross_entropy,
        "the network returns a dict, not a tensor, and the loss fails on it",
    ),
    (lambda: nn.Linear(6, 3), [(X, Y)], nn.CrossEntropyLoss(reduction="none"), "the loss must be a scalar tensor"),
    (lambda: nn.Linear(6, 3), [(X, Y)], lambda f, y: 3.0, "the loss must be a scalar tensor"),
]


@pytest.mark.parametrize(("make", "data", "loss", "message"), FAILURES)
def test_what_a_network_or_a_loss_cannot_do_is_one_line(make: Callable[[], nn.Module], data: Data, loss: Any, message: str) -> None:
    for call in (
        lambda: methods.train(make(), data, epochs=1, loss=loss),
        lambda: methods.prune(make(), [(data[0][0][-2:], data[0][1].sort().values[-2:])], "snip", sparsity=0.5, loss=loss),
    ):
        with pytest.raises(ValueError, match="^" + re.escape(message)) as error:
            call()
        assert "\n" not in str(error.value)


def test_the_layer_that_fails_is_named() -> None:
    with pytest.raises(ValueError, match=r"and shape \(9, 6\): layer '1' \(Linear\): .*mat1 and mat2 shapes cannot be multiplied"):
        methods.train(nn.Sequential(nn.Linear(6, 4), nn.Linear(5, 3)), [(X, Y)], epochs=1)
    normed = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"layer '1' \(BatchNorm1d\): batch norm needs more than one value per channel in training"):
        methods.train(normed, DataLoader(TensorDataset(X, Y), batch_size=8), epochs=1)


def test_running_out_of_memory_stays_what_it_is(mlp: Make) -> None:
    class Greedy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("no more")

    with pytest.raises(torch.OutOfMemoryError):
        methods.train(Greedy(), [(X, Y)], epochs=1)


class Loader:
    """A loader of one's own: `length` is what it says."""

    def __init__(self, batches: Data, length: int) -> None:
        self.batches, self.length = batches, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches)


class Broken(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield X[0], Y[0]
        raise RuntimeError("the file\nis damaged")


UNUSABLE: list[tuple[Any, str]] = [
    ([(X.to_sparse(), Y)], PAIRS + "the inputs of one are sparse; use to_dense()"),
    ([(X.to("meta"), Y)], PAIRS + "the inputs of one have no values"),
    ([(torch.nested.nested_tensor(list(X)), Y)], PAIRS + "the inputs of one are nested; pad them"),
    (DataLoader(Broken(), batch_size=1), "batch 2 of batches cannot be read: is damaged"),
]


@pytest.mark.parametrize(("data", "message"), UNUSABLE)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_batches_that_cannot_be_used_are_named(mlp: Make, data: Any, message: str) -> None:
    for call in (lambda: methods.train(mlp(), data, epochs=1), lambda: methods.prune(mlp(), data, "obd", sparsity=0.5)):
        with pytest.raises(ValueError, match="^" + re.escape(message)) as error:
            call()
        assert "\n" not in str(error.value)


def test_a_loader_of_another_length_than_it_says_is_refused(mlp: Make) -> None:
    halves = [(X[:4], Y[:4]), (X[4:], Y[4:]), (X[:0], Y[:0])]
    with pytest.raises(ValueError, match=r"^batches has length 7, but 3 batches were read in one pass: correct its __len__$"):
        methods.train(mlp(), Loader(halves, 7), epochs=1)
    methods.train(mlp(), Loader(halves, 3), epochs=1)  # empty batches count


def test_empty_batches_do_not_change_the_learning_rate(mlp: Make) -> None:
    halves = [(X[:4], Y[:4]), (X[4:], Y[4:])]
    plain, padded = mlp(), mlp()
    methods.train(plain, halves, epochs=3)
    methods.train(padded, [(X[:0], Y[:0]), *halves, (X[:0], Y[:0])], epochs=3)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), padded.parameters(), strict=True))


def test_inputs_that_come_with_a_graph_are_used_in_every_epoch(mlp: Make) -> None:
    plain, graph = mlp(), mlp()
    methods.train(plain, [(X * 2, Y)], epochs=3)
    methods.train(graph, [(X.clone().requires_grad_() * 2, Y)], epochs=3)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), graph.parameters(), strict=True))


LOSSES: list[tuple[Any, str]] = [
    (nn.CrossEntropyLoss, "loss must be a function of (outputs, targets), e.g. torch.nn.functional.cross_entropy, not the class"),
    ("cross_entropy", "loss must be a function of (outputs, targets)"),
    (lambda f, y: F.cross_entropy(f, y).detach(), "the loss has no gradient"),
    (lambda f, y: (f.argmax(1) == y).sum(), "the loss has no gradient"),
    (lambda f, y: F.cross_entropy(f, y.bool()), "the loss fails on outputs"),
    (lambda f, y: 1 / 0, "the loss fails on outputs"),
]


@pytest.mark.parametrize(("loss", "message"), LOSSES)
def test_losses_that_cannot_train_are_named(mlp: Make, loss: Any, message: str) -> None:
    data = [(X, Y)]
    for call in (
        lambda: methods.train(mlp(), data, epochs=1, loss=loss),
        lambda: methods.prune(mlp(), data, "obd", sparsity=0.5, curvature="ef", loss=loss),
    ):
        with pytest.raises(ValueError, match="^" + re.escape(message)) as error:
            call()
        assert "\n" not in str(error.value)


def test_a_loss_that_is_rounded_to_half_precision_is_still_a_mean(mlp: Make) -> None:
    rounded = methods.scores(mlp(), [(X, Y)], "snip", loss=lambda f, y: F.cross_entropy(f, y).bfloat16())
    exact = methods.scores(mlp(), [(X, Y)], "snip")
    assert all(torch.allclose(rounded[n], s, rtol=0.02) for n, s in exact.items())


def test_complex_parameters_are_trained_as_torch_trains_them() -> None:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.w, self.head = nn.Parameter(torch.randn(6, 6, dtype=torch.complex64)), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((x.to(torch.complex64) @ self.w).abs())

    model, twin = Spectral(), Spectral()
    methods.train(model, [(X, Y)], epochs=1, lr=0.1, weight_decay=0.01)
    (F.cross_entropy(twin(X), Y) + sum(0.005 * p.abs().square().sum() for p in twin.parameters())).backward()
    step = (twin.head.weight - model.head.weight) / twin.head.weight.grad
    rate = float(step.detach().median())  # of the only step: the same for every parameter
    assert rate > 0
    assert all(torch.allclose(q - rate * q.grad, p, atol=1e-5) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"^'w' is complex, and curvature is computed for real parameters only"):
        methods.train(Spectral(), [(X, Y)], "spam", epochs=2)
