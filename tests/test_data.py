"""Which images are used, under which label, and what happens to those that cannot be read."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures_on_disk import batches, coloured_folder, loaded
from PIL import Image

from pxp_fast.data import image_folder, shared_images, split
from pxp_fast.errors import DataError
from pxp_fast.loader import Loader


@pytest.fixture
def folder(tmp_path):
    return coloured_folder(tmp_path / "images")


def names(images):
    return [os.path.relpath(sample.path, images.root) for sample in images.samples]


def test_all_images_come_in_order_with_their_labels_and_pixels(folder):
    images = image_folder(folder, model=loaded())
    assert names(images) == [f"{label}/{i:03d}.png" for label in range(3) for i in range(6)]
    pixels, labels = batches(Loader(images, batch_size=4))
    assert labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    with Image.open(folder / "1" / "002.png") as image:  # 24 x 20: shorter side to 16, 19 wide, the middle 16
        resized = image.resize((19, 16), Image.Resampling.BILINEAR)
    expected = np.asarray(resized)[:, 2:18].transpose(2, 0, 1) / 255
    np.testing.assert_allclose(pixels[8].numpy(), expected, atol=1e-6)


def test_folders_below_a_class_and_links_to_images_count(folder):
    (folder / "0" / "more").mkdir()
    shutil.copy(folder / "1" / "000.png", folder / "0" / "more" / "x.PNG")
    (folder / "0" / "more" / "linked.png").symlink_to(folder / "2" / "000.png")
    (folder / "0" / "notes.txt").write_text("no image")
    (folder / "0" / "._000.png").write_text("left by another system")
    found = [name for name in names(image_folder(folder, model=loaded())) if name.startswith("0/more")]
    assert found == ["0/more/linked.png", "0/more/x.PNG"]


def test_labels_by_number_by_file_by_wordnet_and_by_order(tmp_path):
    numbered = coloured_folder(tmp_path / "a", 1, names=("7", "3", "11"))
    assert set(image_folder(numbered, model=loaded(12)).labels) == {3, 7, 11}
    named = coloured_folder(tmp_path / "b", 1, names=("red", "green", "blue"))
    assert image_folder(named, model=loaded(3)).class_names == {0: "blue", 1: "green", 2: "red"}
    (named / "labels.json").write_text(json.dumps({"red": 5, "green": 0, "blue": 2, "absent": 1}))
    assert image_folder(named, model=loaded(10)).class_names == {0: "green", 2: "blue", 5: "red"}
    wordnet = coloured_folder(tmp_path / "c", 1, names=("n02123159", "n01440764", "n15075141"))
    # Tiger cat, tench and toilet tissue: ImageNet's classes 282, 0 and 999.
    assert image_folder(wordnet, model=loaded(1000)).class_names == {
        282: "n02123159",
        0: "n01440764",
        999: "n15075141",
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"red": 0}', "gives no label to 2 of 3 folders: blue, green"),
        ('{"red": 0, "green": 0, "blue": 1}', "both mean label 0"),
        ('{"red": 0, "green": "one", "blue": 2}', "whole numbers"),
        ('{"red": 0, "green": true, "blue": 2}', "whole numbers"),
        ("[0, 1, 2]", "must hold one object"),
        ("{", "cannot read"),
        ('{"red": 0, "green": 1, "blue": 3}', "outside the model's 3 classes"),
        ('{"red": 0, "green": 1, "blue": -1}', "blue -> -1"),
    ],
)
def test_a_wrong_labels_file_is_explained(tmp_path, content, words):
    root = coloured_folder(tmp_path, 1, names=("red", "green", "blue"))
    (root / "labels.json").write_text(content)
    with pytest.raises(DataError, match=words):
        image_folder(root, model=loaded())


def test_labels_outside_the_head_and_labels_nobody_can_tell(tmp_path):
    with pytest.raises(DataError, match=r"lie outside the model's 2 classes \(0 to 1\): 2 -> 2. Labels count from 0"):
        image_folder(coloured_folder(tmp_path / "a", 1), model=loaded(2))
    named = coloured_folder(tmp_path / "b", 1, names=("red", "green", "blue"))
    with pytest.raises(DataError, match="3 folders .*the model has 10 classes.*labels.json"):
        image_folder(named, model=loaded(10))
    unknown = coloured_folder(tmp_path / "c", 1, names=("n00000001", "n01440764"))
    with pytest.raises(DataError, match="no classes of ImageNet-1k: n00000001"):
        image_folder(unknown, model=loaded(1000))


def test_classes_are_chosen_by_label_or_folder(tmp_path):
    root = coloured_folder(tmp_path, 2, names=("red", "green", "blue"))
    assert set(image_folder(root, model=loaded(), classes=["red", 0]).class_names.values()) == {"red", "blue"}
    with pytest.raises(DataError, match="class 'pink' is not in .*: 0 \\(blue\\), 1 \\(green\\), 2 \\(red\\)"):
        image_folder(root, model=loaded(), classes=["red", "pink"])


def test_missing_empty_and_flat_folders(tmp_path, folder):
    with pytest.raises(DataError, match="cannot read the image folder .*No such file"):
        image_folder(tmp_path / "nowhere", model=loaded())
    with pytest.raises(DataError, match="cannot read the image folder .*Not a directory"):
        image_folder(folder / "0" / "000.png", model=loaded())
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no classes in .*it holds nothing"):
        image_folder(tmp_path / "empty", model=loaded())
    with pytest.raises(DataError, match="6 images directly in it, but no sub-folders"):
        image_folder(folder / "0", model=loaded())
    (folder / "2" / "x").mkdir()
    for path in (folder / "2").glob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match="class 2 of .* has 0 images, 1 asked for"):
        image_folder(folder, model=loaded())
    with pytest.raises(DataError, match="class 2 of .* has 0 images"):
        image_folder(folder, model=loaded(), allow_fewer=True)


@pytest.mark.parametrize("locked", [".", "1"])
def test_a_folder_without_permission_is_named(folder, locked):
    """In a process of its own: the superuser, whom permissions do not stop, becomes nobody first."""
    code = (
        f"import os, sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]\n"
        "from pictures_on_disk import loaded\n"
        "from pxp_fast.data import image_folder\n"
        "from pxp_fast.errors import DataError\n"
        "model = loaded()\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"
        f"try: image_folder({str(folder)!r}, model=model)\n"
        "except DataError as error: print(error)\n"
    )
    for parent in folder.parents:  # nobody may pass through the folders above, which pytest keeps private
        if parent.owner() != "root" or str(parent) in ("/", "/tmp"):
            break
        parent.chmod(parent.stat().st_mode | 0o055)
    (folder / locked).chmod(0)
    try:
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    finally:
        (folder / locked).chmod(0o755)
    expected = folder if locked == "." else folder / locked
    assert f"cannot read the image folder {expected}: Permission denied" in found.stdout, found.stderr


def test_too_few_images_of_a_class(folder):
    (folder / "1" / "005.png").unlink()
    with pytest.raises(DataError, match="class 1 of .* has 5 images, 6 asked for.*--samples-per-class.*--allow-fewer"):
        image_folder(folder, model=loaded(), samples_per_class=6)
    images = image_folder(folder, model=loaded(), samples_per_class=6, allow_fewer=True)
    assert [images.labels.count(label) for label in range(3)] == [6, 5, 6]


def test_the_choice_depends_on_the_seed_and_the_names_alone(tmp_path, folder):
    first = image_folder(folder, model=loaded(), samples_per_class=2, seed=3)
    # The same files made in the opposite order, elsewhere, and other classes left out.
    again = tmp_path / "elsewhere"
    for path in sorted(folder.rglob("*.png"), reverse=True):
        (again / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, again / path.parent.name / path.name)
    assert names(image_folder(again, model=loaded(), samples_per_class=2, seed=3)) == names(first)
    one = names(image_folder(again, model=loaded(), classes=["1"], samples_per_class=2, seed=3))
    assert one == [name for name in names(first) if name.startswith("1/")]
    others = {tuple(names(image_folder(folder, model=loaded(), samples_per_class=2, seed=s))) for s in range(8)}
    assert len(others) > 1


def test_split_is_disjoint_and_complete_and_agrees_with_scoring_alone(folder):
    everything = image_folder(folder, model=loaded())
    reference, evaluation = split(everything, reference_per_class=2, seed=5)
    assert sorted(names(reference) + names(evaluation)) == sorted(names(everything))
    assert not set(names(reference)) & set(names(evaluation))
    assert [reference.labels.count(label) for label in range(3)] == [2, 2, 2]
    assert names(reference) == names(image_folder(folder, model=loaded(), samples_per_class=2, seed=5))
    _, few = split(everything, reference_per_class=2, evaluation_per_class=3, seed=5)
    assert [few.labels.count(label) for label in range(3)] == [3, 3, 3]
    assert set(names(few)) <= set(names(evaluation))


def test_split_refuses_what_it_cannot_part(folder):
    everything = image_folder(folder, model=loaded())
    with pytest.raises(DataError, match="class 0 of .* has 6 images; 6 to score with and at least 1 others .*--val"):
        split(everything, reference_per_class=6)
    reference, evaluation = split(everything, reference_per_class=6, allow_fewer=True)
    assert (len(reference), len(evaluation)) == (15, 3)


def test_images_in_common_are_counted_through_links(tmp_path, folder):
    everything = image_folder(folder, model=loaded())
    reference, evaluation = split(everything, reference_per_class=2)
    assert shared_images(reference, evaluation) == 0
    assert shared_images(reference, everything) == 6
    (tmp_path / "link").symlink_to(folder)
    assert shared_images(reference, image_folder(tmp_path / "link", model=loaded())) == 6


@pytest.fixture
def damaged(folder):
    """`folder` with an empty file, a truncated one, and one that is no image."""
    (folder / "0" / "001.png").write_bytes(b"")
    whole = (folder / "1" / "002.png").read_bytes()
    (folder / "1" / "002.png").write_bytes(whole[: len(whole) // 2])
    (folder / "2" / "003.png").write_text("this is not an image")
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_images_are_skipped_counted_and_named(damaged, workers):
    images = image_folder(damaged, model=loaded())
    loader = Loader(images, batch_size=4, workers=workers)
    pixels, labels = batches(loader)
    assert labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert [Path(path).relative_to(damaged).as_posix() for path, _ in images.skipped] == [
        "0/001.png",
        "1/002.png",
        "2/003.png",
    ]
    reasons = [reason for _, reason in images.skipped]
    assert reasons[0] == "the file is empty"
    assert "truncated" in reasons[1].lower()
    assert "cannot identify" in reasons[2]
    again, _ = batches(loader)
    assert torch.equal(again, pixels)
    assert len(images.skipped) == 3


def test_a_spare_stands_in_for_a_damaged_image(damaged):
    for seed in range(4):  # whichever of the six is left over, the damaged one or another
        whole = image_folder(damaged, model=loaded(), samples_per_class=5, seed=seed)
        _, labels = batches(Loader(whole))
        assert [labels.tolist().count(label) for label in range(3)] == [5, 5, 5]
    everyone = image_folder(damaged, model=loaded(), samples_per_class=6)
    _, labels = batches(Loader(everyone))
    assert [labels.tolist().count(label) for label in range(3)] == [5, 5, 5]
    assert len(everyone.skipped) == 3


def test_nothing_readable_at_all_is_an_error(folder):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of the 18 images .* can be read; the first is .*000.png: the file is"):
        list(Loader(image_folder(folder, model=loaded())))


def test_later_passes_do_not_read_the_files(folder):
    loader = Loader(image_folder(folder, model=loaded()), batch_size=5)
    first, labels = batches(loader)
    shutil.rmtree(folder)
    second, again = batches(loader)
    assert torch.equal(first, second) and torch.equal(labels, again)


def test_what_does_not_fit_the_cache_is_read_again(folder):
    images = image_folder(folder, model=loaded())
    loader = Loader(images, cache_bytes=18 * 3 * 16 * 16 - 1)
    batches(loader)
    (folder / "0" / "000.png").write_bytes(b"")
    _, labels = batches(loader)
    assert len(labels) == 17


def test_demo_images_are_refused_by_another_kind_of_network():
    from pxp_fast.data import demo_images

    with pytest.raises(DataError, match="the demo's images are"):
        demo_images("test", model=loaded())


def test_demo_images_by_class_and_number():
    from pxp_fast import demo, models
    from pxp_fast.data import demo_images

    images = demo_images("test", model=models.load("demo:vgg"), classes=["3", demo.CLASSES[5]], samples_per_class=4)
    pixels, labels = batches(Loader(images))
    assert labels.tolist() == [3] * 4 + [5] * 4
    known, truth = demo.images("test")
    for image, label in zip(pixels, labels, strict=True):
        same = (demo.normalize(known[truth == label]) - image).abs().amax((1, 2, 3)) < 1e-6
        assert int(same.sum()) >= 1
