"""Drawings from files: what is read, what is refused, what is counted."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import zipfile

import numpy as np
import pytest
from sketch_helpers import write_sketches

from inference import load_data
from inference.data.sketches.object_arrays import ForbiddenPickleError, read_pickled_arrays
from inference.data.sketches.svg import path_lines, read_svg
from ppl_models import PplError, UnknownNameError


def objects(arrays):
    found = np.empty(len(arrays), dtype=object)
    found[:] = arrays
    return found


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("kind", ["<i2", ">i4", "<f4", "|i1"])
def test_arrays_of_arrays_are_read_as_numpy_wrote_them(protocol, kind):
    arrays = [np.arange(3 * n).reshape(n, 3).astype(kind) for n in (1, 4, 2)]
    arrays[1] = np.asfortranarray(arrays[1])
    found = read_pickled_arrays(io.BytesIO(pickle.dumps(objects(arrays), protocol)))
    assert all(np.array_equal(a, b) for a, b in zip(found, arrays, strict=True))


def test_a_pickle_of_python_2_is_read():
    """Bytes are text there: the content of an int16 array [[1, 0, 255]], protocol 2."""
    inner = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x01K\x03\x86cnumpy\ndtype\nU\x02i2K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x06\x01\x00\x00\x00\xff\x00tb"
    )
    outer = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x01\x85cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb\x89]" + inner + b"atb."
    )
    (found,) = read_pickled_arrays(io.BytesIO(outer))
    assert found.tolist() == [[1, 0, 255]]


class Runs:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def test_nothing_of_another_pickle_is_run(tmp_path):
    mark = tmp_path / "was_run"
    for content in (Runs(mark), objects([np.zeros((1, 3)), Runs(mark)])):
        with pytest.raises(ForbiddenPickleError, match=r"its pickle holds (posix|nt)\.system"):
            read_pickled_arrays(io.BytesIO(pickle.dumps(content)))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps([1, 2]), "no array of arrays"),
        (pickle.dumps(np.zeros(3).dtype), "no array of arrays"),
        (pickle.dumps(objects(["text"])), "no array of arrays"),
        (pickle.dumps(objects([np.array(["a"])])), "arrays of type 'U1'"),
        (pickle.dumps(len), r"builtins\.len"),
        (pickle.dumps(objects([np.zeros((2, 3))]))[:-20], "malformed"),
        (b"", "malformed"),
        (pickle.dumps(objects([np.zeros((2, 3))])).replace(b"K\x02K\x03", b"K\x7fK\x7f"), "fill"),
        (b"\x80\x02cnumpy\nndarray\nI1000000000\n\x85R.", "malformed"),
        (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nJ\xff\xff\xff\x7f\x85U"
         b"\x01b\x87R.", "not made as numpy"),
    ],
    ids=["list", "type", "text", "letters", "builtin", "short", "empty", "shape", "call", "huge"],
)  # fmt: skip
def test_other_pickles_are_refused(content, message):
    with pytest.raises(ForbiddenPickleError, match=message):
        read_pickled_arrays(io.BytesIO(content))


def test_an_npz_is_a_data_set(tmp_path):
    path = write_sketches(tmp_path / "cat.npz")
    data = load_data(str(path))
    assert data.info.name == "cat"
    assert [len(data.split(part)) for part in ("train", "valid", "test")] == [20, 6, 6]
    x = data.train.tensors["x"]
    moved = x[x[..., 4] == 0][:, :2]
    assert float(moved.double().std(correction=0)) == pytest.approx(1.0, abs=1e-4)
    assert data.info.offset_scale > 1


def test_an_npz_with_something_else_in_it(tmp_path):
    path = tmp_path / "bad.npz"
    parts = {name: objects([Runs(tmp_path / "x")]) for name in ("train", "valid", "test")}
    np.savez(path, **parts)
    with pytest.raises(PplError, match=r"bad.npz is no sketch file.*system"):
        load_data(str(path))
    np.savez(path, train=objects([np.zeros((2, 3))]))
    with pytest.raises(PplError, match="expected the arrays train, valid and test"):
        load_data(str(path))


def test_a_broken_archive(tmp_path):
    path = write_sketches(tmp_path / "cat.npz")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(PplError, match="cannot read"):
        load_data(str(path))
    with zipfile.ZipFile(tmp_path / "dog.npz", "w") as archive:
        archive.writestr("train.npy", b"no array")
    with pytest.raises(PplError, match="'train' is no array"):
        load_data(str(tmp_path / "dog.npz"))


def test_what_cannot_be_used_is_counted_and_told(tmp_path, caplog):
    long = np.column_stack([np.ones((40, 2)), np.zeros(40)])
    strange = [np.zeros((0, 3)), np.full((4, 3), np.nan), np.zeros((3, 2)), np.zeros((2, 3)), long]
    path = write_sketches(tmp_path / "cat.npz", strange)
    with caplog.at_level(logging.WARNING, logger="inference"):
        data = load_data(str(path), max_points=12)
    assert data.info.counts == {"malformed": 1, "empty": 2, "not finite": 1, "cut": 1}
    assert "not finite: 1" in caplog.text
    assert data.info.x_shape == (13, 5)
    assert len(data.train) == 21


def test_nothing_is_left(tmp_path):
    path = tmp_path / "cat.npz"
    nothing = objects([np.full((4, 3), np.nan), np.zeros((0, 3))])
    np.savez(path, train=nothing, valid=nothing, test=nothing)
    with pytest.raises(PplError, match=r"no drawings to use in train .*not finite: 3"):
        load_data(str(path))


def test_a_folder_of_files_has_classes(tmp_path):
    write_sketches(tmp_path / "cat.npz")
    write_sketches(tmp_path / "dog.full.npz", seed=1)
    data = load_data(str(tmp_path))
    assert data.info.class_names == ("cat", "dog")
    assert data.info.num_classes == 2
    assert data.train.tensors["y"].bincount().tolist() == [20, 20]
    one = load_data(str(tmp_path), classes=["dog"])
    assert one.info.class_names == ("dog",)
    assert len(one.train) == 20
    with pytest.raises(UnknownNameError, match=r"unknown class of drawings 'cta'.*mean 'cat'"):
        load_data(str(tmp_path), classes=["cta"])
    with pytest.raises(PplError, match="have no classes"):
        load_data(str(tmp_path / "cat.npz"), classes=["cat"])


def ndjson(words, drawing=(([0, 10, 10], [0, 0, 20]), ([5, 5], [5, 9]))):
    lines = [json.dumps({"word": word, "drawing": drawing}) for word in words]
    return "\n".join(lines) + "\n"


def test_ndjson(tmp_path):
    path = tmp_path / "some.ndjson"
    bad = json.dumps({"word": "fox", "drawing": [[["a"], [2]]]})
    path.write_text(ndjson(["fox", "owl"] * 6) + "\n" + bad)
    data = load_data(str(path))
    assert data.info.class_names == ("fox", "owl")
    assert data.info.counts == {"malformed": 1}
    x = data.train.tensors["x"][0]
    expected = [[10, 0, 1, 0, 0], [0, 20, 0, 1, 0], [-5, -15, 1, 0, 0], [0, 4, 0, 1, 0]]
    rows = x[:4].clone()
    rows[:, :2] *= data.info.offset_scale
    np.testing.assert_allclose(rows.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{no json", "line 2 is no sketch: not JSON"), ('{"word": "owl"}', "expected .*drawing")],
)
def test_lines_that_are_no_sketches(text, message, tmp_path):
    path = tmp_path / "some.ndjson"
    path.write_text(ndjson(["owl"]) + text)
    with pytest.raises(PplError, match=message):
        load_data(str(path))


def test_too_few_to_split(tmp_path):
    path = tmp_path / "some.ndjson"
    path.write_text(ndjson(["owl"] * 3))
    with pytest.raises(PplError, match="3 drawings are too few"):
        load_data(str(path))


SVG = """<svg xmlns="http://www.w3.org/2000/svg"><defs><path d="M0 0 L9 9"/></defs>
<g transform="translate(10 20) scale(2)"><path d="M0 0h3v4H0z"/><line x1="1" y1="1" x2="2" y2="3"/>
</g><polyline points="0,0 1,2 3,4"/><circle cx="5" cy="5" r="2"/><text>no</text></svg>"""


def test_svg_files(tmp_path):
    (tmp_path / "a.svg").write_text(SVG)
    square, line, poly, circle = read_svg(tmp_path / "a.svg")
    assert square.tolist() == [[10, 20], [16, 20], [16, 28], [10, 28], [10, 20]]
    assert line.tolist() == [[12, 22], [14, 26]]
    assert poly.tolist() == [[0, 0], [1, 2], [3, 4]]
    np.testing.assert_allclose(np.linalg.norm(circle - 5, axis=1), 2)
    for i in range(10):
        (tmp_path / f"{i}.svg").write_text(SVG)
    assert len(load_data(str(tmp_path)).train) == 9


@pytest.mark.parametrize(
    ("text", "start", "middle", "end"),
    [
        ("M0 0C0 2 2 2 2 0", (0, 0), (1, 1.5), (2, 0)),
        ("M0 0Q1 2 2 0", (0, 0), (1, 1), (2, 0)),
        ("M0 0q1 2 2 0t2 0", (0, 0), (2, 0), (4, 0)),
        ("M1 1c0 2 2 2 2 0s2-2 2 0", (1, 1), (3, 1), (5, 1)),
        ("M0 0A1 1 0 0 1 2 0", (0, 0), (1, -1), (2, 0)),
        ("M0 0a1 1 0 002 0", (0, 0), (1, 1), (2, 0)),
    ],
)
def test_curves_go_where_they_should(text, start, middle, end):
    (line,) = path_lines(text)
    found = [line[0], line[len(line) // 2], line[-1]]
    np.testing.assert_allclose(found, [start, middle, end], atol=1e-9)


def test_subpaths_begin_anew():
    assert [line.tolist() for line in path_lines("M0 0 1 1M5 5l1 0zm2 2L9 9")] == [
        [[0, 0], [1, 1]],
        [[5, 5], [6, 5], [5, 5]],
        [[7, 7], [9, 9]],
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<svg", "no SVG"),
        ("<html/>", "its root is <html>"),
        ('<svg><path d="M0 0L1"/></svg>', "takes 2 numbers, got 1"),
        ('<svg><g transform="twist(3)"/></svg>', "unknown transform 'twist'"),
    ],
)
def test_files_that_are_no_svg(text, message, tmp_path):
    (tmp_path / "a.svg").write_text(text)
    with pytest.raises(PplError, match=message):
        read_svg(tmp_path / "a.svg")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_points": 0}, "max_points"), ({"simplify": -1.0}, "simplify is a distance")],
)
def test_options_that_are_none(options, message):
    with pytest.raises(PplError, match=message):
        load_data("doodles", **options)


def test_options_of_drawings_are_refused_elsewhere():
    with pytest.raises(PplError, match="'digits' is none"):
        load_data("digits", augment=True)


def test_the_shared_sets(shared_data):
    data = load_data("short_kanji", data_root=str(shared_data))
    assert [len(data.split(part)) for part in ("train", "valid", "test")] == [10_000, 600, 500]
    assert data.info.counts == {}
    assert data.info.x_shape == (89, 5)


def test_a_set_that_is_not_there(tmp_path):
    with pytest.raises(PplError, match=r"there is no .*omniglot\.npz"):
        load_data("omniglot_strokes", data_root=str(tmp_path))
