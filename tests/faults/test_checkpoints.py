"""Damaged files of trained networks are noticed, set aside and trained again; a cache that cannot be written loses no row."""

import csv
import hashlib
import json
import multiprocessing
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.execution.local import Local
from bench.storage import checkpoints
from bench.storage.checkpoints import Networks
from methods import Posterior
from tests.bench.own_files import run_here

Bench = Callable[..., tuple[int, str, str]]


def network(value: float) -> tuple[dict[str, torch.Tensor], Posterior]:
    state = {"w": torch.full((16, 9), value), "b": torch.arange(7.0), "n": torch.tensor(4), "half": torch.ones(3, dtype=torch.bfloat16)}
    factors = {"w": (torch.rand(1, 2, 2), torch.rand(1, 3, 3))}
    return state, Posterior({"w": torch.tensor(2.0)}, 100, 0.5, {"w": torch.rand(16, 9)}, factors, (-3.5,))


@pytest.fixture
def networks(tmp_path: Path) -> Networks:
    """A store with the networks a and b."""
    made = Networks(tmp_path / "networks")
    for value, key in enumerate("ab"):
        made.save(key, *network(value), {"validation_accuracy": 0.5 + value})
    checkpoints._intact.clear()
    checkpoints._told.clear()
    return made


def noticed(networks: Networks, output: str) -> None:
    """The network a is set aside, was said in one line, and can be stored again; b is as before."""
    assert output.count("\n") == 1
    assert output.startswith(f"warning: the trained network '{networks.path('a')}' is damaged (")
    assert output.endswith("): renamed to .damaged, and trained again\n")
    assert not networks.path("a").exists()
    assert (networks.folder / "a.damaged").exists()
    assert networks.load("b")[2] == {"validation_accuracy": 1.5}
    networks.save("a", *network(3), {"validation_accuracy": 0.25})
    assert torch.equal(networks.load("a")[0]["w"], torch.full((16, 9), 3.0))


def header(content: bytes) -> int:
    """The length of the header of a safetensors file."""
    return 8 + int.from_bytes(content[:8], "little")


def damages() -> list[tuple[str, Callable[[bytes], bytes]]]:
    """Random bits of the header and of the data, random lengths, and wholly other contents."""
    draw = random.Random(0)

    def flip(start: float, end: float) -> Callable[[bytes], bytes]:
        where, bit = draw.random(), draw.randrange(8)

        def damage(content: bytes) -> bytes:
            bounds = {0: 0, 1: header(content), 2: len(content)}
            at = int(bounds[int(start)] + where * (bounds[int(end)] - bounds[int(start)]))
            return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]

        return damage

    def cut(share: float) -> Callable[[bytes], bytes]:
        return lambda content: content[: int(share * len(content))]

    found = [(f"header-{k}", flip(0, 1)) for k in range(150)] + [(f"data-{k}", flip(1, 2)) for k in range(60)]
    found += [(f"cut-{k}", cut(draw.random())) for k in range(25)]
    found += [
        ("empty", lambda content: b""),
        ("zeroed weights", lambda content: content[: header(content)] + bytes(len(content) - header(content))),
        ("zeros", lambda content: bytes(len(content))),
        ("text", lambda content: b"not a network"),
        ("longer", lambda content: content + b"x"),
        ("longest header", lambda content: b"\xff" * 8 + content[8:]),
        ("deep header", lambda content: (10**5).to_bytes(8, "little") + b"[" * 10**5),
    ]
    return found


@pytest.mark.parametrize("ask", [Networks.has, Networks.facts, Networks.load])
def test_every_damage_is_noticed(networks: Networks, capfd: pytest.CaptureFixture[str], ask: Callable[[Networks, str], object]) -> None:
    whole = networks.path("a").read_bytes()
    for name, damage in damages():
        networks.path("a").write_bytes(damage(whole))
        if ask is Networks.load:
            with pytest.raises(FileNotFoundError, match="is missing; the next run trains it again"):
                networks.load("a")
        else:
            assert not ask(networks, "a"), name
        noticed(networks, capfd.readouterr().err)
        networks.path("a").unlink()


def test_exchanged_networks_are_noticed(networks: Networks, capfd: pytest.CaptureFixture[str]) -> None:
    a, b = networks.path("a"), networks.path("b")
    kept = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(kept)
    assert not networks.has("a")
    assert not networks.has("b")
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2
    assert all("it is another network" in line for line in said)


def test_a_file_of_an_earlier_release_is_trained_again(networks: Networks, capfd: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import save_file

    metadata = {"posterior": json.dumps({"samples": 1, "temperature": 1.0, "marginal_likelihood": []}), "facts": "{}"}
    save_file({"model.w": torch.zeros(2)}, networks.path("a"), metadata=metadata)
    assert not networks.has("a")
    noticed(networks, capfd.readouterr().err)


def test_a_folder_in_place_of_a_file(networks: Networks, capfd: pytest.CaptureFixture[str]) -> None:
    networks.path("a").unlink()
    (networks.path("a") / "inner").mkdir(parents=True)
    assert not networks.has("a")
    noticed(networks, capfd.readouterr().err)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission(networks: Networks, capfd: pytest.CaptureFixture[str]) -> None:
    networks.path("a").chmod(0)
    assert not networks.has("a")
    noticed(networks, capfd.readouterr().err)


def test_an_error_of_the_disk_while_reading(networks: Networks, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", failing)
        assert not networks.has("a")
    noticed(networks, capfd.readouterr().err)


def test_a_change_after_the_first_check_is_noticed(networks: Networks, capfd: pytest.CaptureFixture[str]) -> None:
    assert networks.has("a")
    content = bytearray(networks.path("a").read_bytes())
    content[-1] ^= 1
    networks.path("a").write_bytes(content)
    assert not networks.has("a")
    noticed(networks, capfd.readouterr().err)


def test_the_digest_is_that_of_the_content(networks: Networks) -> None:
    """The digest, computed again from the bytes of the file by the format's specification."""
    raw = networks.path("a").read_bytes()
    said = json.loads(raw[8 : header(raw)])
    metadata = said.pop("__metadata__")
    wanted = metadata.pop("sha256")
    names = {"F32": "torch.float32", "I64": "torch.int64", "BF16": "torch.bfloat16"}
    digest = hashlib.sha256(json.dumps(dict(sorted(metadata.items()))).encode())
    for name, entry in sorted(said.items()):
        start, end = (header(raw) + offset for offset in entry["data_offsets"])
        digest.update(f"\0{name}\0{names[entry['dtype']]}\0{tuple(entry['shape'])}\0".encode() + raw[start:end])
    assert digest.hexdigest() == wanted


def _write(folder: Path, seed: int) -> None:
    for _ in range(30):
        Networks(folder).save("k", *network(seed), {"seed": seed})


def test_two_processes_write_the_same_network(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(tmp_path, seed)) for seed in (1, 2)]
    for writer in writers:
        writer.start()
    found = []
    while any(writer.is_alive() for writer in writers):
        if Networks(tmp_path).has("k"):
            state, _, facts = Networks(tmp_path).load("k")
            found.append(bool((state["w"] == facts["seed"]).all()))
    assert found
    assert all(found)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert [file.name for file in tmp_path.iterdir()] == ["k.safetensors"]
    assert capfd.readouterr().err == ""


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_no_file_and_is_said_once(
    networks: Networks, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = networks.path("a").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        for key in "acd":
            networks.save(key, *network(5), {})
        networks.fail("e", "why")
    assert capfd.readouterr().err == (
        f"warning: trained networks cannot be stored in '{networks.folder}' ([Errno 28] No space left on device): each job trains those"
        " that it needs\n"
    )
    assert sorted(file.name for file in networks.folder.iterdir()) == ["a.safetensors", "b.safetensors"]
    assert networks.path("a").read_bytes() == before


def test_clearing_removes_damaged_files_too(networks: Networks) -> None:
    networks.path("a").write_bytes(b"x")
    (networks.folder / "b.damaged").mkdir()
    (networks.folder / "c.failed").write_bytes(b"\xff\xfe")
    assert networks.failed("c") == "\\xff\\xfe"
    assert not networks.has("a")
    networks.clear()
    assert list(networks.folder.iterdir()) == []


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run in this process."""
    monkeypatch.setattr(Local, "run", run_here)


def run(bench: Bench, *more: str) -> list[list[str]]:
    """The rows of a small run, without the columns of time and of this machine."""
    code, _, error = bench(
        "run", "--suite", "tiny.toml", "--seeds", "0", "--methods", "random,magnitude", "--workers", "1", "--output", "out", *more
    )
    assert code == 0, error
    with Path("out/results.csv").open(newline="") as lines:
        names, *rows = csv.reader(lines)
    kept = [k for k, column in enumerate(names) if not column.endswith(("seconds", "_ms"))]
    return [[row[k] for k in kept] for row in rows]


def test_a_run_with_a_damaged_network_gives_the_same_rows(tiny: Path, bench: Bench, here: None) -> None:
    wanted = run(bench)
    stored = sorted(Path(".bench/networks").glob("*.safetensors"))
    assert stored
    for file in stored:
        content = np.frombuffer(file.read_bytes(), np.uint8).copy()
        content[header(content.tobytes()) :] = 0
        file.write_bytes(content.tobytes())
    for store in Path(".bench").glob("*.db*"):
        store.unlink()
    assert run(bench) == wanted
    assert len(list(Path(".bench/networks").glob("*.damaged"))) == len(stored)


def test_a_run_whose_networks_cannot_be_stored_gives_the_same_rows(tiny: Path, bench: Bench, here: None) -> None:
    wanted = run(bench)
    shutil.rmtree(".bench")
    Path(".bench").mkdir()
    Path(".bench/networks").write_text("a file in place of the folder")
    assert run(bench) == wanted
