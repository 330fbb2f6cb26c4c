"""Arguments of a wrong type are refused in one line that names the argument, and the network stays as it was."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import methods

Make = Callable[..., nn.Sequential]
Data = list[tuple[Tensor, Tensor]]

PRUNE: list[tuple[str, Any]] = [
    ("mask", 3), ("mask", torch.ones(3)), ("mask", [1]), ("mask", {1: torch.ones(3)}), ("posterior", "x"), ("posterior", {}),
    ("sparsity", "0.9"), ("sparsity", torch.tensor(0.5)), ("sparsity", [0.5]), ("sparsity", 0.5 + 1j), ("method", 3), ("granularity", 3),
]  # fmt: skip
TRAIN: list[tuple[str, Any]] = [
    ("epochs", 1.5), ("epochs", "2"), ("epochs", None), ("training", None), ("optimizer", torch.optim.SGD), ("precision", torch.half),
    ("mask", torch.ones(3)), ("posterior", {}), ("loss", None),
]  # fmt: skip
ONLINE: list[tuple[str, Any]] = [
    ("schedule", "gradual"), ("schedule", methods.Gradual), ("options", 3), ("sparsity", None), ("method", None), ("posterior", 3),
]  # fmt: skip


def refused(model: nn.Module, argument: str, call: Callable[[], Any]) -> None:
    before = [p.clone() for p in model.parameters()]
    named = "(a key of the )?mask" if argument == "mask" else "name|granularity" if argument == "granularity" else argument
    with pytest.raises(ValueError, match=f"^({named}) (must be|is required)") as error:
        call()
    assert "\n" not in str(error.value)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(("argument", "value"), PRUNE)
def test_prune(mlp: Make, batches: Data, argument: str, value: Any) -> None:
    model = mlp()
    refused(model, argument, lambda: methods.prune(model, batches, **{"sparsity": 0.5, argument: value}))


@pytest.mark.parametrize(("argument", "value"), TRAIN)
def test_train(mlp: Make, batches: Data, argument: str, value: Any) -> None:
    model = mlp()
    refused(model, argument, lambda: methods.train(model, batches, **{"epochs": 1, argument: value}))


@pytest.mark.parametrize(("argument", "value"), ONLINE)
def test_train_pruned(mlp: Make, batches: Data, argument: str, value: Any) -> None:
    model = mlp()
    refused(model, argument, lambda: methods.train_pruned(model, batches, **{"epochs": 4, "sparsity": 0.5, argument: value}))


@pytest.mark.parametrize("shape", [5, "3,8", (3, "8"), (3, -8), (0,), ()])
def test_compact(mlp: Make, shape: Any) -> None:
    model = mlp()
    refused(model, "input_shape", lambda: methods.compact(model, {}, input_shape=shape))
    refused(model, "mask", lambda: methods.compact(model, shape, input_shape=(3,)))


def test_a_posterior_of_another_network_is_refused(mlp: Make, batches: Data) -> None:
    posterior = methods.train(nn.Linear(6, 3), [(torch.randn(8, 6), torch.arange(8) % 3)], epochs=1)
    with pytest.raises(ValueError, match=r"^the posterior belongs to another network: it has a prior for none of the parameters$"):
        methods.train(mlp(), batches, epochs=1, posterior=posterior)


@pytest.mark.parametrize("wrong", [None, torch.ones(2, 3), [1.0], "values", "sparse", "meta"])
def test_scores_of_a_wrong_kind_are_refused(mlp: Make, wrong: Any) -> None:
    class Odd(methods.Criterion):
        """Returns something else than scores."""

        name = "odd"

        def score(self, problem: methods.Problem) -> methods.Scores:
            if wrong == "sparse":
                return methods.Scores({n: w.detach().to_sparse() for n, w in problem.weights.items()})
            if wrong == "meta":
                return methods.Scores({n: w.detach().to("meta") for n, w in problem.weights.items()})
            return methods.Scores(dict.fromkeys(problem.weights, 1.0)) if wrong == "values" else methods.Scores(wrong)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match=r"^'odd' must (return methods.Scores of a dict|give '0.weight' scores that are a dense tensor)"):
        methods.score(methods.Problem(mlp(), [(torch.randn(4, 6), torch.arange(4) % 3)]), Odd())
