"""Checkpoints: loaded with names and shapes checked, and never unpickled."""

import hashlib
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.networks import build, weights
from bench.spec.errors import UserError


def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))


def saved(folder: Path, state: dict[str, Tensor], name: str = "w.safetensors") -> str:
    save_file(state, folder / name)
    return str(folder / name)


def test_all_weights_and_buffers_are_loaded(tmp_path: Path) -> None:
    given, other = model(), model()
    given(torch.randn(8, 1, 3, 3))  # moves the statistics of batch norm
    weights.load(other, saved(tmp_path, given.state_dict()), "it")
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, given.state_dict()[name]), name
    assert other.state_dict()["1.num_batches_tracked"] == 1


def test_half_precision_is_converted_and_a_network_of_timm_takes_its_own_names(tmp_path: Path) -> None:
    given = build.create("lenet5", (1, 8, 8), 10)
    path = saved(tmp_path, {name: tensor.half() for name, tensor in given.state_dict().items()})
    other = build.create("lenet5", (1, 8, 8), 10)
    weights.load(other, path, "it")
    for name, tensor in other.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, given.state_dict()[name].half().float())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"3.bias": None}, "the tensor '3.bias' of the network is missing (did you mean '1.bias'?)"),
        ({"3.bias": None, "3.bais": torch.zeros(3)}, "the tensor '3.bias' of the network is missing (did you mean '3.bais'?)"),
        ({"4.bias": torch.zeros(3)}, "the network has no tensor '4.bias' (did you mean '3.bias'?)"),
        ({"3.weight": torch.zeros(4, 2)}, "the shape of '3.weight' is (4, 2), in the network it is (3, 2)"),
        ({"0.bias": torch.tensor([0.0, float("nan")])}, "'0.bias' has values that are not finite"),
    ],
)
def test_another_network_s_weights_are_refused_in_one_line(tmp_path: Path, change: dict[str, Tensor | None], said: str) -> None:
    state = {name: tensor for name, tensor in (model().state_dict() | change).items() if tensor is not None}
    path, untouched = saved(tmp_path, state), model()
    before = {name: tensor.clone() for name, tensor in untouched.state_dict().items()}
    with pytest.raises(UserError) as error:
        weights.load(untouched, path, "the network")
    assert str(error.value) == f"weights '{path}': {said}"
    assert all(torch.equal(tensor, before[name]) for name, tensor in untouched.state_dict().items())


def test_one_name_of_a_shared_tensor_is_enough(tmp_path: Path) -> None:
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    tied[1].weight = tied[0].weight
    weights.load(tied, saved(tmp_path, {"0.weight": torch.eye(3)}), "it")
    assert torch.equal(tied[1].weight.data, torch.eye(3))
    apart = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    with pytest.raises(UserError, match=r"'1\.weight' of it is missing"):
        weights.load(apart, saved(tmp_path, {"0.weight": torch.eye(3)}), "it")


@pytest.mark.parametrize("ending", ["pt", "pth", "bin", "ckpt"])
def test_a_pickle_is_refused_with_how_to_convert_it(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / f"net.{ending}"
    torch.save(model().state_dict(), file)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(pickle, "Unpickler", never)
    monkeypatch.setattr(pickle, "load", never)
    monkeypatch.setattr(torch, "load", never)
    for use in (lambda: weights.load(model(), str(file), "it"), lambda: weights.digest(str(file))):
        with pytest.raises(UserError) as error:
            use()
        convert = f"safetensors.torch.save_file(torch.load('{file}', weights_only=True), 'net.safetensors')"
        assert str(error.value) == f"weights '{file}': this format can run code and is not read; convert the state dict once: {convert}"


def test_files_that_are_missing_or_something_else(tmp_path: Path) -> None:
    path = saved(tmp_path, model().state_dict())
    with pytest.raises(UserError, match=r"there is no such file \(did you mean 'w\.safetensors'\?\)$"):
        weights.digest(str(tmp_path / "v.safetensors"))
    (tmp_path / "text.txt").write_text("x")
    with pytest.raises(UserError, match=r"only a \.safetensors file is read$"):
        weights.digest(str(tmp_path / "text.txt"))
    (tmp_path / "bad.safetensors").write_text("x" * 100)
    with pytest.raises(UserError, match=r"bad\.safetensors' cannot be read as safetensors: ") as error:
        weights.load(model(), str(tmp_path / "bad.safetensors"), "it")
    assert "\n" not in str(error.value)
    assert weights.digest(path) == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    saved(tmp_path, {name: tensor + 1 for name, tensor in model().state_dict().items()})
    assert weights.digest(path) == hashlib.sha256(Path(path).read_bytes()).hexdigest(), "the content now"
