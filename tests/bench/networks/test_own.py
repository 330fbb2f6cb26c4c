"""Networks of the user's own: what they are called with, what is refused in one line, and the version of their code."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.networks import build, plugins
from bench.spec import own_file
from bench.spec.errors import UserError

pytestmark = pytest.mark.usefixtures("clean_registry")

NET = """
import torch
from torch import nn

def build({parameters}):
    '''Two layers.'''
    GIVEN.append(dict(locals()))
    return nn.Sequential(nn.Flatten(), nn.Linear({features}, 5))

GIVEN = []
"""


def written(folder: Path, text: str, name: str = "my_net.py") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.mark.parametrize(
    ("parameters", "shape", "given"),
    [
        ("", (3, 4, 4), {}),
        ("classes, channels, image_size, input_shape", (3, 4, 4), {"classes": 5, "channels": 3, "image_size": 4, "input_shape": (3, 4, 4)}),
        ("*, num_classes, in_chans, img_size", (3, 4, 6), {"num_classes": 5, "in_chans": 3, "img_size": (4, 6)}),
        ("classes, width=7, img_size=2, **more", (8,), {"classes": 5, "width": 7, "img_size": 2, "more": {}}),
        ("*channels, classes", (8,), {"channels": (), "classes": 5}),
    ],
)
def test_it_gets_what_its_signature_names(tmp_path: Path, parameters: str, shape: tuple[int, ...], given: dict[str, object]) -> None:
    file = written(tmp_path, NET.format(parameters=parameters, features=torch.Size(shape).numel()))
    model = build.create(f"{file}:build", shape, 5)
    assert model.training
    assert model(torch.zeros(3, *shape)).shape == (3, 5)
    assert own_file.function("architecture", f"{file}:build").__globals__["GIVEN"] == [given]
    assert build.describe(f"{file}:build") == "Two layers"
    assert build.accepts(f"{file}:build", shape)


def test_a_class_is_called_too(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self, classes):\n        super().__init__()\n"
        "        self.head = nn.LazyLinear(classes)\n    def forward(self, x):\n        return self.head(x.flatten(1))\n",
    )
    assert build.create(f"{file}:Net", (1, 2, 2), 3)(torch.zeros(2, 1, 2, 2)).shape == (2, 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def build(depth): pass", "its parameter 'depth' has no default and is not offered; offered are: classes, num_classes, channels"),
        ("def build(classes, /): pass", "its parameter 'classes' takes no name; arguments are passed by name: remove the '/'"),
        ("def build(): return 3", "must return a torch.nn.Module, not a int"),
        ("def build(): pass", "must return a torch.nn.Module, not None"),
        ("from torch import nn\ndef build(): return nn.Linear", "must return a torch.nn.Module, not the class Linear"),
        ("from torch import nn\ndef build(): return nn.Flatten()", "the module has no parameters"),
        ("def build(classes): return {}['a']", "the call with (classes=5) raised KeyError: 'a'"),
        ("from torch import nn\ndef build(): return nn.Linear(2, 5)", "cannot take inputs of shape (1, 2, 2): its output for 2 examples"),
        ("from torch import nn\ndef build(): return nn.Sequential(nn.Flatten(), nn.Linear(3, 5))", "shapes cannot be multiplied"),
        (
            "import torch\nfrom torch import nn\nclass Net(nn.Linear):\n    def forward(self, x):\n"
            "        return super().forward(x.flatten(1)) / 0\ndef build(): return Net(4, 5)",
            "its output for zeros is not finite",
        ),
        ("def built(): pass", "has no function 'build' (did you mean 'built'?); it has: built"),
        ("build = 3", "has no function 'build'; it has: none"),
        ("import nobody_wrote_this", "cannot be imported: ModuleNotFoundError: No module named 'nobody_wrote_this'"),
        ("def build(:", "cannot be imported: SyntaxError"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(UserError) as error:
        build.create(f"{file}:build", (1, 2, 2), 5)
    assert said in str(error.value)
    assert str(error.value).startswith(f"architecture '{file}:build'")
    assert "\n" not in str(error.value)


def test_a_missing_file_names_the_nearest_and_a_file_alone_the_form(tmp_path: Path) -> None:
    file = written(tmp_path, NET)
    with pytest.raises(UserError, match=r"there is no file '.*my_nets\.py' \(did you mean 'my_net\.py'\?\)$"):
        build.describe(f"{tmp_path}/my_nets.py:build")
    with pytest.raises(UserError, match=r"unknown architecture .*a network of your own is written FILE\.py:NAME"):
        build.describe(file)


def test_only_images_have_a_size(tmp_path: Path) -> None:
    file = written(tmp_path, "def build(img_size): pass")
    with pytest.raises(UserError, match=r"its parameter 'img_size' is for images only; offered are: classes, .*input_shape$"):
        build.create(f"{file}:build", (4,), 5)


def test_the_same_module_twice_is_refused(tmp_path: Path) -> None:
    """It would be trained in one job and then taken for untrained in the next."""
    file = written(tmp_path, "from torch import nn\nNET = nn.Sequential(nn.Flatten(), nn.Linear(4, 5))\ndef build(): return NET\n")
    build.create(f"{file}:build", (1, 2, 2), 5)
    with pytest.raises(UserError, match="returned the same module as in an earlier call"):
        build.create(f"{file}:build", (1, 2, 2), 5)


def test_pretrained_weights_are_those_of_timm_only(tmp_path: Path) -> None:
    file = written(tmp_path, NET.format(parameters="", features=4))
    with pytest.raises(UserError, match="has no pretrained weights of timm; give a checkpoint by --weights"):
        build.create(f"{file}:build", (1, 2, 2), 5, pretrained=True)


def test_the_version_changes_with_the_code_and_timm_s_own_have_none(tmp_path: Path) -> None:
    name = written(tmp_path, NET.format(parameters="", features=4)) + ":build"
    before, module = build.version(name), build.create(name, (1, 2, 2), 5)
    assert build.version(name) == before
    written(tmp_path, NET.format(parameters="", features=4).replace("nn.Flatten(), ", "nn.Flatten(), nn.Tanh(), "))
    assert build.version(name) != before
    assert len(build.create(name, (1, 2, 2), 5)) == len(module) + 1  # type: ignore[arg-type]
    assert build.version("resnet18") == build.version("mlp") == build.version("vit_tiny_patch16_224.augreg_in21k") == ""


REGISTERED = """
from timm.models import register_model
from torch import nn

@register_model
def {name}(pretrained=False, num_classes=10, in_chans=3, **kwargs):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear({width}), nn.Linear({width}, num_classes))
"""


def test_a_plug_in_registers_a_network_of_timm_and_an_edit_replaces_it(tmp_path: Path) -> None:
    file = written(tmp_path, REGISTERED.format(name="registered_net", width=8))
    assert plugins.load(file).networks == ["registered_net"]
    assert build.create("registered_net", (1, 2, 2), 5)[1].out_features == 8  # type: ignore[index]
    before = build.version("registered_net")
    assert before
    written(tmp_path, REGISTERED.format(name="registered_net", width=9))
    plugins.load(file)
    assert build.create("registered_net", (1, 2, 2), 5)[1].out_features == 9  # type: ignore[index]
    assert build.version("registered_net") != before
    written(tmp_path, REGISTERED.format(name="registered_net_2", width=9))
    assert plugins.load(file).networks == ["registered_net_2"]
    with pytest.raises(UserError, match="unknown architecture 'registered_net'"):
        build.create("registered_net", (1, 2, 2), 5)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with the entry points `own_mlp` and `resnet18`; the folder of its code."""
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text("from torch import nn\nfrom my_package.width import WIDTH\n\ndef build(classes):\n    "
                                     "return nn.Sequential(nn.Flatten(), nn.LazyLinear(WIDTH), nn.Linear(WIDTH, classes))\n")  # fmt: skip
    (package / "width.py").write_text("WIDTH = 3\n")
    info = tmp_path / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    lines = ["own_mlp = my_package.nets:build", "resnet18 = my_package.nets:build", "broken = my_package.nets:nothing"]
    (info / "entry_points.txt").write_text(
        "\n".join(["[razorbench.architectures]", *lines, "[razorbench.datasets]", "broken = no_such:load"])
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    own_file._entries.cache_clear()
    yield package
    own_file._entries.cache_clear()


def test_an_entry_point_is_a_network_and_is_imported_again_after_an_edit(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert "my_package" not in sys.modules
    assert own_file.file_of("architecture", "own_mlp") == (installed / "nets.py").resolve()
    assert "my_package" not in sys.modules, "the file is found without importing it"
    model = build.create("own_mlp", (1, 2, 2), 5)
    before = build.version("own_mlp")
    assert isinstance(model, nn.Sequential)
    assert model[1].out_features == 3
    (installed / "width.py").write_text("WIDTH = 4\n")
    assert build.version("own_mlp") != before
    assert build.create("own_mlp", (1, 2, 2), 5)[1].out_features == 4  # type: ignore[index]


def test_faults_of_entry_points_are_one_line(installed: Path) -> None:
    with pytest.raises(UserError, match="'resnet18' names two networks: one of timm or razorbench, and an entry point"):
        build.create("resnet18", (1, 2, 2), 5)
    with pytest.raises(
        UserError, match=r"architecture 'broken': its entry point my_package\.nets:nothing cannot be loaded: AttributeError"
    ):
        build.create("broken", (1, 2, 2), 5)
    with pytest.raises(UserError, match=r"unknown architecture 'own_ml': choose from .*own_mlp"):
        build.create("own_ml", (1, 2, 2), 5)
