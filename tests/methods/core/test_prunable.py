"""Which weights are prunable, by hand-written lists, and what `include` and `exclude` change."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.utils as old
from torch import Tensor, nn
from torch.nn.utils import parametrizations as new

import methods
from methods.core.prunable import summed


class Encoder(nn.Module):
    """An embedding, a transformer layer, a recurrent layer, and a head: tokens (n, 5) -> 3 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.rnn = nn.LSTM(8, 6, num_layers=2, bidirectional=True, proj_size=4, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.rnn(self.layer(self.embed(x)))[0][:, -1])
        return logits


def test_attention_and_recurrent_matrices_are_prunable_and_embeddings_are_not() -> None:
    model = Encoder()
    found = {n: w.numel() for n, w in methods.prunable(model).items()}
    # LSTM: for each layer and direction W_ih (4·6, inputs), W_hh (4·6, 4), W_hr (4, 6).
    lstm = {}
    for layer, inputs in ((0, 8), (1, 8)):
        for back in ("", "_reverse"):
            lstm |= {
                f"rnn.weight_ih_l{layer}{back}": 24 * inputs,
                f"rnn.weight_hh_l{layer}{back}": 24 * 4,
                f"rnn.weight_hr_l{layer}{back}": 24,
            }
    attention = {"layer.self_attn.in_proj_weight": 3 * 64, "layer.self_attn.out_proj.weight": 64}
    assert found == attention | {"layer.linear1.weight": 128, "layer.linear2.weight": 128} | lstm | {"head.weight": 24}
    assert list(found) == [n for n, _ in model.named_parameters() if n in found]


@pytest.mark.parametrize(
    ("layer", "weights"),
    [
        (lambda: nn.MultiheadAttention(8, 2, kdim=4, vdim=6), {"q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"}),
        (lambda: nn.Bilinear(3, 4, 5), {"weight"}),
        (lambda: nn.GRU(4, 6), {"weight_ih_l0", "weight_hh_l0"}),
        (lambda: nn.GRUCell(4, 6), {"weight_ih", "weight_hh"}),
        (lambda: nn.ConvTranspose2d(4, 6, 3), {"weight"}),
        (lambda: nn.LayerNorm((4, 6)), set()),
        (lambda: nn.EmbeddingBag(4, 6), set()),
    ],
)
def test_roles_of_layers(layer: Callable[[], nn.Module], weights: set[str]) -> None:
    assert set(methods.prunable(layer())) == weights


def test_every_other_parameter_has_a_reason() -> None:
    model = Encoder()
    found = methods.prunable(model, exclude="head.*")
    assert set(found) | set(found.others) == {n for n, _ in model.named_parameters()}
    assert set(found) & set(found.others) == set()
    assert found.others["embed.weight"] == "looked up, not multiplied; include='embed.weight' adds it"
    assert found.others["head.weight"] == "excluded by name"
    assert found.others["head.bias"] == "has fewer than two dimensions"
    lines = str(found).splitlines()
    assert len(lines) == 1 + len(list(model.parameters()))
    assert any(line.split() == ["layer.self_attn.in_proj_weight", "24", "x", "8", "yes"] for line in lines)


def test_include_and_exclude_change_what_is_counted_and_cut() -> None:
    torch.manual_seed(0)
    data = [(torch.randint(11, (6, 5)), torch.randint(3, (6,)))]
    everything = methods.prunable(Encoder(), include="embed.*", exclude=["rnn.*", "head.weight"])
    total = 88 + 192 + 64 + 128 + 128
    assert sum(w.numel() for w in everything.values()) == total
    for method in ("magnitude", "obd", "snip"):
        model = Encoder()
        mask = methods.prune(model, data, method, sparsity=0.7, include="embed.*", exclude=["rnn.*", "head.weight"])
        assert set(mask) == set(everything)
        assert sum(int((~m).sum()) for m in mask.values()) == round(0.7 * total)
        assert bool((model.embed.weight == 0).any()) == bool((~mask["embed.weight"]).any())
        assert not bool((model.head.weight == 0).any())
    methods.train(model, data, epochs=1, mask=mask)
    assert methods.mask_holds(model, mask)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"exclude": "hed.*"}, "exclude='hed.*' matches no prunable weight; there are layer.self_attn.in_proj_weight, "),
        ({"include": ["head.bias"]}, "include='head.bias' matches no parameter of two dimensions or more"),
    ],
)
def test_patterns_that_match_nothing_are_refused(choice: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)) as error:
        methods.prune(Encoder(), sparsity=0.5, **choice)
    assert "\n" not in str(error.value)


def test_lazy_quantised_and_meta_networks_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^'0.weight' has no values yet, because its layer is lazy: run one batch"):
        methods.prune(nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3)), sparsity=0.5)
    with pytest.raises(ValueError, match=r"^'weight' has no values, because it is on the meta device$"):
        methods.prune(nn.Linear(3, 4, device="meta"), sparsity=0.5)
    with pytest.raises(ValueError, match=r"no prunable weights: it has no matrix or kernel that multiplies activations$"):
        methods.prune(nn.Sequential(nn.ReLU()), sparsity=0.5)


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (new.weight_norm, "0.parametrizations.weight.original1"),
        (old.weight_norm, "0.weight_v"),
        (new.spectral_norm, "0.parametrizations.weight.original"),
        (old.spectral_norm, "0.weight_orig"),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_the_parameter_that_a_weight_is_computed_from_stands_for_it(wrap: Callable[[nn.Module], nn.Module], name: str) -> None:
    assert list(methods.prunable(nn.Sequential(wrap(nn.Linear(4, 5)), nn.Linear(5, 3)))) == [name, "1.weight"]


def test_products_sum_over_inputs() -> None:
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(8, 3),
            "conv": nn.Conv2d(8, 6, 3, groups=2),
            "back": nn.ConvTranspose2d(8, 6, 3, groups=2),
            "lstm": nn.LSTM(8, 2),
            "attention": nn.MultiheadAttention(8, 2),
            "bilinear": nn.Bilinear(4, 8, 2),
        }
    )
    assert summed(model) == {
        "linear.weight": (1, 8),
        "conv.weight": (1, 4),
        "back.weight": (0, 4),
        "lstm.weight_ih_l0": (1, 8),
        "lstm.weight_hh_l0": (1, 2),
        "attention.in_proj_weight": (1, 8),
        "attention.out_proj.weight": (1, 8),
    }


def test_a_tied_weight_is_included_and_excluded_by_either_name() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.hidden, self.head = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False)
            self.head.weight = self.embed.weight

    model = Tied()
    assert list(methods.prunable(model)) == ["embed.weight", "hidden.weight"]
    assert list(methods.prunable(model, exclude="head.weight")) == ["hidden.weight"]
    assert list(methods.prunable(model, include="head.weight")) == ["embed.weight", "hidden.weight"]
    with pytest.raises(ValueError, match=r"^the mask names 'head.weight', another name of 'embed.weight': use 'embed.weight'$"):
        methods.prune(model, sparsity=0.5, mask={"head.weight": torch.ones(5, 4, dtype=torch.bool)})


@pytest.mark.parametrize("pattern", [3, None, ["0.weight", 3], {"a": 1, 2: 3}])
def test_patterns_must_be_text(pattern: Any) -> None:
    for argument in ("include", "exclude"):
        with pytest.raises(ValueError, match=f"^{argument} must be a pattern or a list of patterns"):
            methods.prune(nn.Linear(3, 2), sparsity=0.5, **{argument: pattern})


@pytest.mark.parametrize("model", [None, "net", nn.Linear, {"w": torch.zeros(2, 2)}])
def test_what_is_not_a_network_is_named(model: Any) -> None:
    data = [(torch.zeros(2, 3), torch.zeros(2).long())]
    for call in (
        lambda: methods.prunable(model),
        lambda: methods.full_mask(model),
        lambda: methods.prune(model, sparsity=0.5),
        lambda: methods.scores(model),
        lambda: methods.train(model, data),
        lambda: methods.train_pruned(model, data, sparsity=0.5),
        lambda: methods.compact(model, {}, data),
    ):
        with pytest.raises(ValueError, match=r"^model must be a torch.nn.Module, not "):
            call()


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.filter = nn.Linear(3, 2), nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))


def test_parameters_that_are_not_real_numbers_cannot_be_included() -> None:
    with pytest.raises(ValueError, match=r"^include='filter' matches no parameter of two dimensions or more in floating point"):
        methods.prune(Complex(), sparsity=0.5, include="filter")
    assert methods.prunable(Complex()).others["filter"] == "is complex64, not floating point"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: nn.Linear(3, 0), "'weight' has no entries"),
        (lambda: nn.Sequential(), "it has no matrix or kernel that multiplies activations"),
        (lambda: torch.jit.script(nn.Sequential(nn.Linear(3, 2))), "'0.weight' belongs to a scripted layer"),
    ],
)
def test_networks_with_nothing_to_prune_say_why(model: Callable[[], nn.Module], why: str) -> None:
    with pytest.raises(ValueError, match="^the model has no prunable weights: " + re.escape(why)):
        methods.prune(model(), sparsity=0.5)


def test_a_network_without_parameters_cannot_be_trained() -> None:
    with pytest.raises(ValueError, match=r"^no parameter of the model requires a gradient"):
        methods.train(nn.ReLU(), [(torch.zeros(2, 3), torch.zeros(2).long())], epochs=1)
