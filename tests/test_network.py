"""network: weights from elsewhere are loaded where names and shapes fit, else the error lists what does not."""

import io
from collections import OrderedDict

import pytest
import torch
from torch import nn

from helpers import checkpoint
from helpers.checkpoint import CheckpointError
from helpers.config import TrainingConfig
from helpers.models import build_model
from helpers.network import TrainedNetwork

CONFIG = TrainingConfig(num_classes=4, widths=(8, 16, 16, 16), device="cpu")


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(3)
    return build_model(**CONFIG.model_arguments()).state_dict()


def load(content, path):
    torch.save(content, path)
    return TrainedNetwork.load(path, CONFIG, torch.device("cpu"))


def assert_loaded(network, weights):
    found = network.model.state_dict()
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)


def prefixed(weights, prefix):
    return OrderedDict((prefix + name, tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "model._orig_mod."])
@pytest.mark.parametrize("under", ["", "state_dict", "net", "model", "model_state_dict"])
def test_weights_under_other_names_are_loaded_and_this_is_said(prefix, under, weights, tmp_path, caplog):
    content = prefixed(weights, prefix)
    content = {under: content, "epoch": 3, "optimizer": {"lr": 0.1}} if under else content
    assert_loaded(load(content, tmp_path / "theirs.pt"), weights)
    taken = [part for part in ("module.", "_orig_mod.", "model.") if part in prefix]
    taken += [] if under in ("", "model_state_dict") else [f"under {under!r}"]
    assert all(part in caplog.text for part in taken) and len(caplog.records) == bool(taken)


def test_what_torch_itself_wraps_is_loaded(weights, tmp_path):
    model = build_model(**CONFIG.model_arguments())
    model.load_state_dict(weights)
    assert_loaded(load(nn.DataParallel(model).state_dict(), tmp_path / "parallel.pt"), weights)
    compiled = torch.compile(model).state_dict()
    assert all(name.startswith("_orig_mod.") for name in compiled)
    assert_loaded(load({"model_state_dict": compiled}, tmp_path / "compiled.pt"), weights)


def test_the_counters_of_batches_may_be_missing(weights, tmp_path):
    bare = {name: tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}
    assert_loaded(load(bare, tmp_path / "bare.pt"), weights)


def test_what_does_not_fit_is_listed(weights, tmp_path):
    spoilt = prefixed(weights, "model.")
    del spoilt["model.fc.bias"]
    spoilt["model.fc.weight"] = torch.zeros(7, 16)
    spoilt |= {f"criterion.{number}": torch.zeros(1) for number in range(13)}
    with pytest.raises(CheckpointError) as caught:
        load({"state_dict": spoilt}, tmp_path / "theirs.pt")
    message = str(caught.value)
    assert "theirs.pt: does not fit CIFAR100CNN with widths=(8, 16, 16, 16) and num_classes=4" in message
    assert "missing: fc.bias\n" in message and "fc.weight [7, 16] instead of [4, 16]" in message
    assert "criterion.9 and 3 more" in message and "criterion.10" not in message


@pytest.mark.parametrize("then, words", [({"pooling": "max"}, "pooling='max'"), ({"model": "FastCNN"}, "FastCNN")])
def test_weights_of_a_network_that_is_gone_are_refused_though_their_shapes_fit(then, words, tmp_path):
    config = TrainingConfig(model="FlipCNN", widths=(8, 8, 8), num_classes=4)
    state = {"model_state_dict": build_model(**config.model_arguments()).state_dict(),
             "config": config.to_dict() | {"pooling": "max_blur"}}
    torch.save(state, path := tmp_path / "theirs.pt")
    TrainedNetwork.load(path, config, torch.device("cpu"))
    torch.save(state | {"config": state["config"] | then}, path)
    with pytest.raises(CheckpointError, match=f"theirs.pt: .*{words}.* has it"):
        TrainedNetwork.load(path, config, torch.device("cpu"))


def test_a_name_that_comes_twice_is_over(weights, tmp_path):
    with pytest.raises(CheckpointError, match="over: module.fc.bias"):
        load({**weights, "module.fc.bias": torch.zeros(4)}, tmp_path / "twice.pt")


def test_safetensors_are_read_where_they_can_be(weights, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "model.safetensors"
    content = safetensors.save({name: tensor.contiguous() for name, tensor in prefixed(weights, "model.").items()})
    path.write_bytes(content)
    assert_loaded(TrainedNetwork.load(path, CONFIG, torch.device("cpu")), weights)
    path.write_bytes(content[:len(content) // 2])
    with pytest.raises(CheckpointError, match="model.safetensors: is truncated"):
        checkpoint.load(path)


def test_without_safetensors_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    (tmp_path / "model.safetensors").write_bytes((20).to_bytes(8, "little") + b'{"__metadata__":{}} ')
    with pytest.raises(CheckpointError, match="pip install safetensors"):
        checkpoint.load(tmp_path / "model.safetensors")


def half_of(content) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()[:len(file.getvalue()) // 2]


@pytest.mark.parametrize("content, says", [
    (b"\n<!DOCTYPE html><html>Sign in</html>", "it is a web page"),
    (b'<?xml version="1.0"?>\n<html xmlns="">', "it is a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9", "it is a Git LFS pointer"),
    (half_of({"weight": torch.zeros(1000)}), "its end is missing")])
def test_what_came_in_place_of_weights_is_told(content, says, tmp_path):
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"weights.pt: is .*{says}"):
        checkpoint.load(tmp_path / "weights.pt")


class Settings:
    pass


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("kind", ["TorchScript", "legacy", "an operation", "a network", "a function"])
def test_no_message_passes_on_advice_to_run_code(kind, tmp_path):
    path = tmp_path / "theirs.pt"
    if kind == "TorchScript":
        torch.jit.script(nn.Linear(2, 2)).save(path)
    elif kind == "an operation":
        path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x95\x00\x01\x02")
    else:
        torch.save({"legacy": {"a": {1, 2}, "b": Settings()}, "a network": nn.Linear(2, 2),
                    "a function": {"model_state_dict": half_of}}[kind], path,
                   _use_new_zipfile_serialization=kind != "legacy")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert "weights_only" not in message and "\n" not in message and "theirs.pt" in message
