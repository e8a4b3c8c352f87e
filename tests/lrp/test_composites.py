"""Composites: files and mappings in and out, what is refused, presets against zennit's composites."""

import json
import subprocess
import sys
import warnings

import pytest
import torch
import torchvision
from oracles.engine import relative_l1, unit_sums
from oracles.networks import pictures, randomise
from oracles.zennit_oracle import ZennitOracle
from pictures_on_disk import coloured_folder, write_module
from torch import nn
from typer.testing import CliRunner

import pxp_fast as pxp
from pxp_fast.cli import app
from pxp_fast.errors import PxpError
from pxp_fast.lrp import Composite
from pxp_fast.lrp.composites import PRESETS, composite
from pxp_fast.lrp.registry import rule

MIXED = Composite(
    "mixed",
    stabilizer=1e-5,
    low="z-plus",
    mid={"rule": "gamma", "gamma": 0.1},
    high="alpha-beta",
    fully_connected="flat",
    softmax="z-plus-bias",
    layers={"blocks.0.*": "w-square", "*.fc1": {"rule": "gamma", "gamma": 0.5}},
)


@pytest.mark.parametrize("given", [*PRESETS.values(), MIXED], ids=lambda c: c.name)
@pytest.mark.parametrize("name", ["c.json", "c.yaml", "c.YML"])
def test_what_is_saved_is_what_is_loaded(given, name, tmp_path):
    if not name.endswith("json"):
        pytest.importorskip("yaml", reason="PyYAML is an extra")
    given.save(tmp_path / name)
    assert Composite.load(tmp_path / name) == given
    assert composite(str(tmp_path / name)) == composite(tmp_path / name) == given
    assert Composite.from_mapping(json.loads(json.dumps(given.describe()))) == given


def test_a_file_is_small_and_readable(tmp_path):
    pytest.importorskip("yaml", reason="PyYAML is an extra")
    MIXED.save(tmp_path / "mixed.yaml")
    assert (tmp_path / "mixed.yaml").read_text() == (
        "name: mixed\nstabilizer: 1.0e-05\nlow: z-plus\nmid:\n  rule: gamma\n  gamma: 0.1\n"
        "high:\n  rule: alpha-beta\n  alpha: 2.0\n  beta: 1.0\nfully_connected: flat\nsoftmax: z-plus-bias\n"
        "layers:\n  blocks.0.*: w-square\n  '*.fc1':\n    rule: gamma\n    gamma: 0.5\n"
    )
    (tmp_path / "short.yml").write_text("low: z-plus\nstabilizer: 1e-3\nmid: {rule: gamma, gamma: 1e-1}\n")
    expected = Composite(low="z-plus", mid={"rule": "gamma", "gamma": 0.1}, stabilizer=1e-3)
    assert Composite.load(tmp_path / "short.yml") == expected


def test_headers_of_before_there_were_groups_are_read():
    assert Composite.from_mapping({"name": "epsilon", "stabilizer": 1e-6}) == composite("epsilon")
    assert Composite.from_mapping({"name": "epsilon", "stabilizer": 0.0}) == Composite("epsilon", stabilizer=0.0)


def test_the_first_pattern_that_matches_comes_before_the_group():
    assert MIXED.rule_of("mid", "blocks.0.fc1") == rule("w-square")
    assert MIXED.rule_of("mid", "blocks.1.fc1") == rule({"rule": "gamma", "gamma": 0.5})
    assert MIXED.rule_of("low", "blocks.1.fc2") == rule("z-plus")
    assert MIXED.rule_of("fully_connected", "head") == rule("flat")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"lower": "epsilon"}, "no 'lower'; it has name, stabilizer, low"),
        ({"low": "zplus"}, "group low: rule 'zplus' is not known; choose one of epsilon"),
        ({"high": {"rule": "gamma", "beta": 1}}, "group high: rule.*gamma.* has no parameter .*beta"),
        ({"high": {"rule": "gamma", "gamma": "much"}}, "group high: .*gamma.*'much'"),
        ({"mid": {"gamma": 1}}, "group mid: .*rule"),
        ({"mid": 3}, "group mid: 3 is no rule"),
        ({"mid": None}, "group mid: None is no rule"),
        ({"softmax": "zplus"}, "softmax rule 'zplus' is not known; choose one of epsilon, z-plus"),
        ({"softmax": ["cp"]}, "softmax rule .*'cp'.* is not known"),
        ({"stabilizer": "small"}, "stabilizer is 'small'"),
        ({"stabilizer": -1}, "finite number >= 0"),
        ({"stabilizer": float("nan")}, "finite number >= 0"),
        ({"stabilizer": 10**400}, "stabilizer"),
        ({"stabilizer": True}, "stabilizer is True"),
        ({"name": ""}, "name"),
        ({"name": 3}, "name"),
        ({"layers": ["conv1"]}, "must map patterns"),
        ({"layers": 3}, "must map patterns"),
        ({"layers": {"conv1": "zplus"}}, "layers 'conv1': rule 'zplus'"),
        ({"name": "epsilon", "low": "z-plus"}, "another name"),
        ({"low": {"rule": "alpha-beta", "alpha": None}}, "group low: rule alpha-beta: alpha is None"),
        ({"low": {"rule": "gamma", "gamma": 10**400}}, "group low: rule gamma: gamma is 1000"),
        ({1: 2}, "a composite has no 1"),
        ([1, 2], "must be a mapping"),
        ("epsilon", "must be a mapping"),
        (None, "must be a mapping"),
    ],
)
def test_what_is_no_composite_is_refused(content, words, tmp_path):
    with pytest.raises(PxpError, match=words):
        Composite.from_mapping(content)
    if content != {1: 2}:  # a JSON object's keys are text
        (tmp_path / "c.json").write_text(json.dumps(content))
        with pytest.raises(PxpError, match=f"c.json: .*{words}"):
            Composite.load(tmp_path / "c.json")


def test_files_that_hold_no_composite_are_refused(tmp_path):
    (tmp_path / "huge.json").write_text("[" + "0," * 100_000 + "0]")
    (tmp_path / "deep.json").write_text("[" * 60_000)
    (tmp_path / "text.json").write_text("low: z-plus")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    for name, words in {"huge": "64 KiB", "deep": "not JSON", "text": "not JSON", "bytes": "not JSON"}.items():
        with pytest.raises(PxpError, match=f"{name}.json.*{words}"):
            Composite.load(tmp_path / f"{name}.json")
    (tmp_path / "twice.json").write_text('{"low": "z-plus", "mid": {"rule": "gamma"}, "low": "gamma"}')
    with pytest.raises(PxpError, match="twice.json is not JSON: 'low' comes twice"):
        Composite.load(tmp_path / "twice.json")
    with pytest.raises(PxpError, match="cannot read .*none.json: No such file"):
        composite(tmp_path / "none.json")
    with pytest.raises(PxpError, match="cannot read"):
        composite(f"{tmp_path}/")
    with pytest.raises(PxpError, match="'epsilonplus' is not known; choose one of epsilon, epsilon-plus"):
        composite("epsilonplus")


def test_yaml_is_data_and_needs_its_extra(tmp_path):
    pytest.importorskip("yaml", reason="PyYAML is an extra")
    laughs = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True):
        laughs += f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]\n"
    (tmp_path / "laughs.yaml").write_text(laughs + "low: *i\nname: x\n")
    (tmp_path / "low.yaml").write_text("low: &a [*a]\n")
    (tmp_path / "object.yaml").write_text("low: !!python/object/apply:os.getcwd []\n")
    (tmp_path / "broken.yaml").write_text("low: [z-plus\n")
    (tmp_path / "twice.yaml").write_text("low: z-plus\nlayers:\n  '*.fc1': gamma\n  '*.fc1': z-plus\n")
    (tmp_path / "list.yaml").write_text("? [low, mid]\n: z-plus\n")
    (tmp_path / "merged.yaml").write_text("low: &a {rule: gamma, gamma: 0.5}\nmid: {<<: *a, gamma: 0.1}\n")
    assert Composite.load(tmp_path / "merged.yaml").mid == rule({"rule": "gamma", "gamma": 0.1})
    words = {
        "twice": r"not YAML: '\*.fc1' comes twice.*line 4",
        "list": "not YAML",
        "laughs": "has no 'a'",
        "low": "group low|not YAML",
        "object": "not YAML",
        "broken": "not YAML",
    }
    for name, expected in words.items():
        with pytest.raises(PxpError, match=expected):
            Composite.load(tmp_path / f"{name}.yaml")
    code = "import sys; sys.modules['yaml'] = None\nfrom pxp_fast.lrp import Composite\nComposite.load(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "laughs.yaml"], capture_output=True, text=True)
    assert "pip install pyyaml, or write JSON instead" in done.stderr


def test_a_pattern_that_matches_no_layer_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    loader = [(torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))]
    with pytest.raises(PxpError, match=r"'mine' has a rule for layers 'conv\*', but none is called so .*; .* are 0, 2"):
        pxp.score(model, loader, composite=Composite("mine", layers={"conv*": "z-plus"}))
    pxp.score(model, loader, composite="attnlrp")  # whose patterns are some networks' names


class Upsampling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.up = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 4, 2, bias=False)
        self.pool, self.head = nn.AvgPool2d(2), nn.Linear(4 * 9, 5)

    def forward(self, x):
        return self.head(self.pool(self.up(self.norm(self.conv(x)).relu())).flatten(1))


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ({"pool": "z-plus"}, "has rule z-plus for 'pool', but pool is no convolution .*: there pass, norm, block act"),
        ({"up": "gamma"}, "has rule gamma for 'up', but up is no convolution"),
        ({"norm": "block"}, "layers 'norm', but none is called so .batch norms belong to the layer before them"),
    ],
)
def test_a_rule_that_would_do_nothing_is_refused(layers, words):
    with pytest.raises(PxpError, match=words):
        unit_sums(Upsampling().eval(), *pictures(2, 8, classes=5), composite=Composite("mine", layers=layers))


def test_transposed_convolutions_say_that_they_keep_epsilon():
    torch.manual_seed(0)
    model, (images, labels) = Upsampling().double().eval(), pictures(2, 8, classes=5)
    with pytest.warns(UserWarning, match="'epsilon-plus' is for transposed convolutions, epsilon used for: up"):
        plain = unit_sums(model, images.double(), labels, composite="epsilon-plus")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unit_sums(model, images.double(), labels)
        stopped = Composite(low="z-plus", layers={"up": "block"})
        assert not unit_sums(model, images.double(), labels, composite=stopped)["conv"].any()
    assert plain["conv"].any()


def test_scores_keep_their_composite_and_the_command_takes_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    coloured_folder(tmp_path / "images", 4)
    network = f"{write_module(tmp_path)}:classifier"
    mine = Composite("mine", stabilizer=1e-3, softmax="cp")
    mine.save("mine.json")
    words = ["score", network, "--data", "images", "--device", "cpu", "--samples-per-class", "2", "--composite"]
    outcome = CliRunner().invoke(app, [*words, "mine.json", "--out", "mine"])
    assert outcome.exit_code == 0, outcome.output
    scores = pxp.Scores.load("mine/scores.safetensors")
    assert Composite.from_mapping(scores.header.composite) == mine
    assert scores.header.composite["softmax"] == "cp"
    for wrong, message in (("none.json", "cannot read none.json"), ("mine.txt", "cannot read mine.txt")):
        outcome = CliRunner().invoke(app, [*words, wrong])
        assert outcome.exit_code == 2 and message in outcome.output.replace("\n", " ")


# Ours, zennit's, and how zennit's is made. zennit's dense layers get epsilon, as ours do behind the convolutions.
ZENNIT = {"epsilon-plus": "ZPlus", "alpha2-beta1": "AlphaBeta"}


@pytest.mark.parametrize("name", ZENNIT)
@pytest.mark.parametrize("architecture", ["vgg11_bn", "resnet18"])
def test_presets_equal_zennits_composites(architecture, name):
    import zennit.rules
    from zennit.composites import LayerMapComposite
    from zennit.layer import Sum
    from zennit.torchvision import ResNetCanonizer
    from zennit.types import Activation, AvgPool, Convolution, Linear

    options = {"alpha": 2, "beta": 1} if name == "alpha2-beta1" else {}
    convolutional = getattr(zennit.rules, ZENNIT[name])(stabilizer=1e-6, **options)
    rules = [(Activation, zennit.rules.Pass()), (Sum, zennit.rules.Norm()), (AvgPool, zennit.rules.Norm())]
    rules += [(Convolution, convolutional), (Linear, zennit.rules.Epsilon(1e-6))]
    theirs = LayerMapComposite(rules, canonizers=[ResNetCanonizer()])
    torch.manual_seed(0)
    model = getattr(torchvision.models, architecture)(num_classes=10)
    model = randomise(model, pictures(8, 32, seed=3)[0]).double()
    images, labels = pictures(3, 32, seed=7, classes=10)
    truth, _ = ZennitOracle(model, rules=theirs).run(images.double(), labels)
    for layer, sums in unit_sums(model, images.double(), labels, composite=name).items():
        assert relative_l1(sums, truth[layer]) < 1e-9, layer
