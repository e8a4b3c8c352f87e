"""Saved models that are damaged, made by others, or made to do harm: a clear refusal, never another model."""

import hashlib
import json
import pickle
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_families import network, slimmed

import pxp_fast as pxp
from pxp_fast.checkpoint_record import CheckpointRecord


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    small, images, plan = slimmed("deit", 0.5)
    folder = tmp_path_factory.mktemp("models") / "small"
    pxp.save(small, folder, plan=plan, name="timm:deit_tiny_distilled_patch16_224",
             arguments={"img_size": 32, "depth": 2, "embed_dim": 48}, example=images)  # fmt: skip
    return folder


@pytest.fixture
def saved(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "small"))


def refused(folder, complaint: str) -> None:
    with pytest.raises(pxp.PxpError, match=complaint):
        pxp.load(folder)


def rewrite(folder: Path, change=lambda content: None, weights=lambda tensors: None) -> None:
    """Change what is saved, with digests that fit, as a program would that knows how."""
    path, tensors = folder / "model.safetensors", load_file(folder / "model.safetensors")
    weights(tensors)
    save_file(tensors, path)
    content = json.loads((folder / "pxp.json").read_text())
    content["weights"] = {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    change(content)
    sign(folder, content)


def sign(folder: Path, content: dict) -> None:
    content.pop("digest")
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (folder / "pxp.json").write_text(json.dumps({**content, "digest": digest}))


def test_what_is_not_there(saved, tmp_path):
    refused(tmp_path / "nothing", "there is no saved model .*nothing")
    (saved / "pxp.json").unlink()
    refused(saved, "has no pxp.json: it is not from pxp_fast.save; is it timm:local-dir:")
    (saved / "config.json").unlink()
    refused(saved, "is no saved model: it has no pxp.json")


def test_no_tensors(saved):
    (saved / "model.safetensors").unlink()
    refused(saved, "model.safetensors is missing; take another copy")


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_truncated_file(saved, share):
    for name, complaint in (("model.safetensors", "is truncated"), ("pxp.json", "is damaged")):
        path = saved / name
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        refused(saved, f"{name} {complaint}")
        path.write_bytes(content)
    pxp.load(saved)


def test_every_changed_byte_is_noticed(saved):
    """Whitespace apart, a record with one byte changed is refused; so is a file of tensors."""
    chance = random.Random(0)
    path = saved / "pxp.json"
    content, expected = path.read_bytes(), CheckpointRecord.load(saved)
    for _ in range(300):
        place = chance.randrange(len(content))
        changed = bytearray(content)
        changed[place] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        try:
            assert CheckpointRecord.load(saved) == expected and json.loads(changed) == json.loads(content)
        except pxp.PxpError as error:
            assert str(saved) in str(error)
    path.write_bytes(content)
    path = saved / "model.safetensors"
    content = path.read_bytes()
    for _ in range(30):
        changed = bytearray(content)
        changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        refused(saved, "model.safetensors is damaged or of another model: its sha256 is")


def test_tensors_of_another_model(saved):
    save_file(network("deit")[0].state_dict(), saved / "model.safetensors")
    refused(saved, "not the file that was saved: .* bytes, expected")


def test_a_later_format(saved):
    content = json.loads((saved / "pxp.json").read_text())
    content |= {"version": 2, "novelty": 1}
    content["versions"]["pxp_fast"] = "7.0"
    sign(saved, content)
    refused(saved, "was saved in format 2 by pxp_fast 7.0; this is .*, which reads formats up to 1: install a newer")


@pytest.mark.parametrize("content", [b"[]", b"{}", b"null", b'{"format": "pxp_fast.plan"}', b"\xff\xfe", b"[" * 100000])
def test_json_that_is_something_else(saved, content):
    (saved / "pxp.json").write_bytes(content)
    refused(saved, "pxp.json is (no record of a saved model|damaged)")


CHANGES = {
    "no such model": (lambda c: c.update(architecture="timm:resnet7"), "cannot be built here .*'timm:resnet7' is un"),
    "argument": (lambda c: c["arguments"].update(colour=1), "unexpected keyword argument 'colour'"),
    "download": (lambda c: c.update(architecture="timm:hf-hub:some/one"), "names no constructor"),
    "itself": (lambda c: c.update(architecture="pxp:small"), "pxp:small, code that is not pxp_fast's"),
    "code": (lambda c: c.update(architecture="os:getcwd"), "is built by os:getcwd, code that is not pxp_fast's"),
    "reading": (lambda c: c["arguments"].update(checkpoint_path="x.pth"), "argument checkpoint_path .* is about"),
    "class": (lambda c: c["changes"]["classes"].update({"norm": "os.system"}), "norm is to be a os.system, which this"),
    "class of ours": (
        lambda c: c["changes"]["classes"].update({"norm": "pxp_fast.slimming.attention.NarrowMultiheadAttention"}),
        "or which it cannot become",
    ),
    "method": (lambda c: c["changes"]["attributes"].update({"": {"forward": 1}}), "forward of the model is not for a"),
    "hooks": (lambda c: c["changes"]["attributes"].update({"": {"_forward_hooks": 1}}), "_forward_hooks of the model"),
    "module": (lambda c: c["changes"]["attributes"].update({"heads": {"width": 1}}), "has no module heads"),
    "shape": (lambda c: c["changes"]["shapes"].update({"norm.weight": [7]}), r"norm.weight is \[48\], expected \[7\]"),
    "absent": (lambda c: c["changes"].update(absent=["norm.weight"]), "there is a tensor norm.weight that the model"),
    "heads": (
        lambda c: c["changes"]["attributes"].update({"blocks.0.attn": {"num_heads": 7}}),
        "do not fit each other or images of",
    ),
    "key": (lambda c: c.update(surprise=1), "no intact record of a saved model"),
    "type": (lambda c: c.update(changes=3), "no intact record of a saved model"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_record_that_was_made_up(saved, change):
    do, complaint = CHANGES[change]
    rewrite(saved, do)
    refused(saved, complaint)


def narrower(content):
    content["changes"]["shapes"]["blocks.0.mlp.fc1.weight"] = [5, 48]
    content["changes"]["shapes"]["blocks.0.mlp.fc1.bias"] = [5]


def cut(tensors):
    for name in ("blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc1.bias"):
        tensors[name] = tensors[name][:5].clone()


@pytest.mark.parametrize(
    "change, weights, complaint",
    [
        (narrower, cut, "does not fit timm:deit.*: its parts do not fit each other"),
        (lambda c: None, cut, r"blocks.0.mlp.fc1.(weight|bias) is \[5(, 48)?\], expected \["),
        (lambda c: None, lambda t: t.pop("norm.weight"), r"there is no tensor norm.weight \(1 missing\)"),
        (lambda c: None, lambda t: t.update(more=torch.ones(1)), "a tensor more that the model has no place for"),
    ],
)
def test_shapes_that_do_not_fit(saved, change, weights, complaint):
    rewrite(saved, change, weights)
    refused(saved, complaint)


class Harm:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_nothing_is_unpickled(saved, tmp_path):
    content = json.loads((saved / "pxp.json").read_text())
    (saved / "model.safetensors").write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    path = saved / "model.safetensors"
    content["weights"] = {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    sign(saved, content)
    refused(saved, "cannot read .*model.safetensors as safetensors")
    torch.save({"weight": Harm(tmp_path / "harm")}, path)
    content["weights"] = {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    sign(saved, json.loads((saved / "pxp.json").read_text()) | {"weights": content["weights"]})
    refused(saved, "cannot read .*model.safetensors as safetensors")
    assert not (tmp_path / "harm").exists()


def test_other_versions_are_told_where_something_does_not_fit(saved):
    rewrite(saved, lambda c: c.update(versions=c["versions"] | {"timm": "0.1"}), lambda t: t.pop("norm.weight"))
    refused(saved, r"missing\); it was saved with .*timm 0.1 \(here 1")
