"""The main job on a small folder: its numbers worked out a second time, and everything that can stand in its way."""

import json
import shlex

import pytest
import torch
from pictures_on_disk import batches, coloured_folder, write_module
from PIL import Image
from safetensors.torch import save
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

import pxp_fast as pxp
from pxp_fast.config import RunConfig
from pxp_fast.errors import CaptureError, DataError, ModelError, NumericalError, OutputError, PxpError
from pxp_fast.loader import Loader
from pxp_fast.models import load
from pxp_fast.results import Results
from pxp_fast.run import run


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with images and a module of networks."""
    monkeypatch.chdir(tmp_path)
    coloured_folder(tmp_path / "images", 8)
    return tmp_path, write_module(tmp_path)


def config(place, network="classifier", **changes) -> RunConfig:
    folder, module = place
    options = {
        "model": f"{module}:{network}", "data": str(folder / "images"), "out": folder / "out", "rate": 0.5,
        "samples_per_class": 2, "random_seeds": 2, "heatmaps": 2, "device": "cpu",
        "slim": False,
    }  # fmt: skip
    return RunConfig(**(options | changes))


def judged_by_hand(module: str, folder, skip: set[str], removed: tuple[int, ...]) -> tuple[int, int]:
    """Images of `folder` classified right, without those that scored, by the network without filters `removed`."""
    network = load(f"{module}:classifier").model
    with torch.no_grad():
        network[0].weight[list(removed)] = 0
        network[0].bias[list(removed)] = 0
    look = transforms.Compose([transforms.Resize(16), transforms.CenterCrop(16), transforms.ToTensor()])
    right = total = 0
    for path in sorted(folder.rglob("*.png")):
        if str(path) in skip:
            continue
        answer = network(look(Image.open(path).convert("RGB"))[None]).argmax().item()
        right += answer == int(path.parent.name)
        total += 1
    return right, total


def test_a_run_leaves_files_whose_numbers_are_right(place):
    folder, module = place
    result = run(config(place, slim=True))
    out = folder / "out"
    assert {path.name for path in out.iterdir()} == {
        "scores.safetensors", "plan.json", "heatmaps.safetensors", "results.json", "report.html", "model"
    }  # fmt: skip
    found = Results.load(out / "results.json")
    assert found == result.results

    scores = pxp.Scores.load(out / "scores.safetensors", f"{module}:classifier")
    plan = pxp.Plan.load(out / "plan.json", f"{module}:classifier")
    (group,) = [g for g in plan.groups if g.kind == "filter"]
    values = scores.of(group.name)
    assert set(group.removed) == set(values.argsort()[:3].tolist())  # half of six filters, the least relevant
    assert (found.removed, found.units) == (plan.removed_count, plan.total_count)
    assert [(layer.name, layer.removed) for layer in found.layers] == [(g.name, len(g.removed)) for g in plan.groups]

    from pxp_fast.selection import scoring

    used = {str(sample.path) for sample in scoring(config(place), load(f"{module}:classifier")).samples}
    assert len(used) == 6
    assert (found.before.correct, found.before.total) == judged_by_hand(module, folder / "images", used, ())
    assert (found.after.correct, found.after.total) == judged_by_hand(module, folder / "images", used, group.removed)
    assert found.shared_images == 0
    assert sum(record.before for record in found.classes) == found.before.correct

    assert [(curve.order, curve.seed) for curve in found.curves] == [
        ("least", None), ("most", None), ("random", 0), ("random", 1)
    ]  # fmt: skip
    for curve in found.curves:
        assert curve.rates == pxp.RATES
        assert curve.accuracies[0] == found.before.accuracy
        assert curve.removed == tuple(int(6 * rate) for rate in pxp.RATES)
        assert curve.a_pr == pytest.approx(sum(curve.accuracies) / 20)
    assert found.curve("least").accuracies[10] == found.after.accuracy
    assert found.curve("most").accuracies[10] < found.curve("least").accuracies[10]
    assert found.command.startswith(f"pxp-fast run {module}:classifier --data ")


def test_the_smaller_network_is_judged_and_measured(place):
    folder, module = place
    result = run(config(place, slim=True))
    found, plan = result.results, pxp.Plan.load(folder / "out" / "plan.json")
    assert (found.slimmed.cut, found.slimmed.zeros, found.slimmed.problem) == (3, 0, None)
    assert [(layer.cut, layer.zeros) for layer in found.layers] == [(3, 0)]
    assert found.slimmed.difference <= 1e-5 and found.slimmed.compared == 8
    whole, network = load(f"{module}:classifier").model, load(f"{module}:classifier").model
    pxp.apply_mask(network, plan)
    small = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(3, 3))  # fmt: skip
    kept = [unit for unit in range(6) if unit not in plan.groups[0].removed]
    small.load_state_dict({"0.weight": network[0].weight[kept], "0.bias": network[0].bias[kept],
                           "4.weight": network[4].weight[:, kept], "4.bias": network[4].bias})  # fmt: skip
    for position, one in enumerate((whole, small)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            one(torch.zeros(1, 3, 16, 16))
        assert found.costs.flops[position] == counter.get_total_flops()
        assert found.costs.parameters[position] == sum(p.numel() for p in one.parameters())
        assert found.costs.bytes[position] == len(save(one.state_dict()))
    assert [timed.batch for timed in found.costs.latency] == [1, 32]

    from pxp_fast.selection import scoring_and_judging

    loaded = load(f"{module}:classifier")
    images, labels = batches(Loader(scoring_and_judging(config(place), loaded)[1]))
    was, now = ((one(images).argmax(1) == labels) for one in (whole, small))
    counts = [int((a & b).sum()) for a, b in ((was, now), (was, ~now), (~was, now), (~was, ~now))]
    paired = found.paired
    assert [paired.both, paired.lost, paired.gained, paired.neither] == counts
    assert paired.difference == pytest.approx(found.after.accuracy - found.before.accuracy)
    assert found.slimmed.masked == found.after
    content = json.loads((folder / "out" / "results.json").read_text())
    assert content["after"]["interval"] == list(found.after.interval)
    assert content["paired"]["interval"] == list(found.paired.interval)
    assert content["costs"]["promised"] == pytest.approx(found.costs.flops[0] / found.costs.flops[1])


def test_explanations_are_compared_on_more_images_than_are_shown(place):
    folder, _ = place
    from pxp_fast.heatmaps import HeatMaps

    found = run(config(place, slim=True, random_seeds=0)).results
    assert [record.measure for record in found.agreement] == ["cosine", "overlap", "rank"]
    assert all(len(record.values) == found.evaluation.read == 18 for record in found.agreement)
    maps = HeatMaps.load(folder / "out" / "heatmaps.safetensors", found.heatmaps)
    shown = torch.nn.functional.cosine_similarity(maps.before.flatten(1).float(), maps.after.flatten(1).float())
    assert found.agreement[0].values[:2] == pytest.approx(shown.tolist(), abs=2e-3)
    assert [record.similarity for record in found.heatmaps] == list(found.agreement[0].values[:2])


def test_masks_alone_are_one_option_away(place):
    folder, _ = place
    found = run(config(place, random_seeds=0, heatmaps=0)).results
    assert found.slimmed is None and found.costs is None
    assert [layer.cut for layer in found.layers] == [None]
    assert found.paired.both + found.paired.lost == found.before.correct
    page = (folder / "out" / "report.html").read_text()
    assert "set to zero" in page and "The smaller network" not in page


def test_a_network_that_cannot_be_slimmed_goes_on_with_masks(place):
    folder, module = place
    with open(folder / f"{module}.py", "a") as source:
        source.write(
            "\n\nclass Stubborn(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.built = classifier()\n"
            "        self.pxp_input = self.built.pxp_input\n\n"
            "    def forward(self, x):\n"
            "        return self.built(x) * self.built[0].out_channels\n"
        )
    said = []
    found = run(config(place, "Stubborn", slim=True, random_seeds=0), say=said.append).results
    assert "does not compute what the masked one does" in found.slimmed.problem
    assert (found.slimmed.cut, found.slimmed.zeros, found.costs) == (0, 3, None)
    assert [(layer.cut, layer.zeros) for layer in found.layers] == [(None, 3)]
    assert found.slimmed.masked == found.after
    assert any("could not be made smaller, and goes on with masks: the slimmed Stubborn" in line for line in said)
    assert "could not be made smaller" in (folder / "out" / "report.html").read_text()


def test_the_heat_maps_are_those_of_the_network_whole_and_pruned(place):
    folder, module = place
    from pxp_fast.heatmaps import HeatMaps

    result = run(config(place, slim=True))
    maps = HeatMaps.load(folder / "out" / "heatmaps.safetensors", result.results.heatmaps)
    plan = pxp.Plan.load(folder / "out" / "plan.json")
    network = load(f"{module}:classifier").model
    images = (maps.images.float() / 255).requires_grad_()
    labels = torch.tensor([int(record.name) for record in result.results.heatmaps])
    for kept in (maps.before, maps.after):
        # Without biases, of ReLU networks relevance is the input times the gradient, over the logit.
        logits = network(images).gather(1, labels[:, None])
        (gradient,) = torch.autograd.grad((logits / logits.detach()).sum(), images)
        expected = (images * gradient).sum(1).detach()
        expected = expected / expected.abs().amax((1, 2), keepdim=True)
        torch.testing.assert_close(kept.float(), expected, atol=5e-3, rtol=0)
        pxp.apply_mask(network, plan)


def test_the_same_options_give_the_same_files(place):
    folder, _ = place
    run(config(place))
    run(config(place, out=folder / "again"))
    for name in ("scores.safetensors", "plan.json", "heatmaps.safetensors"):
        assert (folder / "out" / name).read_bytes() == (folder / "again" / name).read_bytes()


def test_judging_by_the_images_that_scored_is_said_plainly(place):
    folder, _ = place
    result = run(config(place, val=str(folder / "images"), samples_per_class=0))
    found = result.results
    assert (found.reference.read, found.evaluation.read, found.shared_images) == (24, 24, 24)
    assert any("24 of the 24 images that judge are also images that score" in note for note in found.notes)
    assert "24 of the 24 images that judge are also images that score" in (folder / "out" / "report.html").read_text()


def test_images_that_cannot_be_read_are_not_counted_among_those_shared(place):
    folder, _ = place
    (folder / "images" / "1" / "003.png").write_bytes(b"")
    found = run(config(place, val=str(folder / "images"), samples_per_class=0, random_seeds=0, heatmaps=0)).results
    assert (found.reference.read, found.evaluation.read, found.shared_images) == (23, 23, 23)


def test_operators_without_a_rule_are_named(place, recwarn):
    folder, module = place
    with open(folder / f"{module}.py", "a") as source:
        source.write(
            "\n\ndef waving():\n"
            "    class Wave(nn.Module):\n"
            "        def forward(self, x):\n"
            "            return torch.erfinv(x * 0.1)\n\n"
            "    built = classifier()\n"
            "    waved = nn.Sequential(built[0], Wave(), *list(built)[1:])\n"
            "    waved.pxp_input = built.pxp_input\n"
            "    return waved\n"
        )
    found = run(config(place, "waving", random_seeds=0, heatmaps=2)).results
    assert len(found.heatmaps) == 2
    assert sum("No relevance rule" in note and "erfinv" in note for note in found.notes) == 1
    assert not [str(warning.message) for warning in recwarn if "relevance rule" in str(warning.message)]


def test_random_weights_are_said_plainly(place):
    options = {"checkpoint_kwargs": {"num_classes": 3}, "random_seeds": 0, "heatmaps": 0}
    found = run(config(place, model="timm:test_resnet", **options)).results
    assert any("random weights" in note for note in found.notes)
    assert found.heatmaps == ()


def test_damaged_images_are_named_in_results_and_report(place):
    folder, _ = place
    broken = folder / "images" / "1" / "003.png"
    broken.write_bytes(broken.read_bytes()[:60])
    found = run(config(place)).results
    assert [record.path for record in found.skipped] == [str(broken)]
    assert found.reference.read + found.evaluation.read == 23
    assert "1/003.png" in (folder / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("network", "error", "words"),
    [
        ("poisoned", ModelError, "4.weight holds NaN"),
        ("Branching", CaptureError, "cannot be captured"),
        ("Overflowing", NumericalError, "relevance of second is not finite"),
        ("nothing", ModelError, "has no 'nothing'"),
    ],
)
def test_networks_that_cannot_be_scored_leave_nothing(place, network, error, words):
    with pytest.raises(error, match=words):
        run(config(place, network))
    assert list((place[0] / "out").iterdir()) == []


@pytest.mark.parametrize("spoilt", ["missing", "empty", "few"])
def test_images_that_cannot_be_used_leave_nothing(place, spoilt):
    folder, _ = place
    (folder / "empty").mkdir()
    changes = {
        "missing": {"data": str(folder / "nowhere")},
        "empty": {"data": str(folder / "empty")},
        "few": {"samples_per_class": 8},
    }[spoilt]
    with pytest.raises(DataError):
        run(config(place, **changes))
    assert list((folder / "out").iterdir()) == []


def test_an_output_folder_that_cannot_be_is_found_out_first(place):
    folder, _ = place
    (folder / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write into .*file/out.*--out"):
        run(config(place, "no_such_network", out=folder / "file" / "out"))


def test_a_device_that_is_not_there(place):
    with pytest.raises(PxpError, match="device 'cuda:99' cannot be used.*--device cpu"):
        run(config(place, device="cuda:99"))


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_a_rate_outside_the_unit_interval_is_refused(place, rate):
    with pytest.raises(ValueError, match="rate"):
        config(place, rate=rate)


def test_the_command_of_a_run_asks_for_the_same_run(place):
    from typer.testing import CliRunner

    from pxp_fast.cli import app

    asked = config(
        place, classes=("0", "2"), checkpoint_kwargs={"width": 4}, magnitude=False, units=("filter",), order="most",
        allow_fewer=True, dtype="float64", val=str(place[0] / "images"), eval_samples_per_class=3, workers=1,
        per_class=True, graph=False,
    )  # fmt: skip
    words = shlex.split(asked.command())
    assert words[0] == "pxp-fast"
    outcome = CliRunner().invoke(app, words[1:], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    found = json.loads((place[0] / "out" / "results.json").read_text())
    assert RunConfig(**found["config"]) == asked
