"""What unpacking and unpickling refuse, and that they read exactly what they accept."""

import io
import os
import pickle
import stat
import tarfile
import zipfile

import numpy as np
import pytest

from bench.assets import AssetError
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
