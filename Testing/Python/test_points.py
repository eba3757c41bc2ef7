"""Landmark files as Slicer and spreadsheets write them."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from FoundationRegLib.errors import InputError
from FoundationRegLib.images.landmarks import Points, read_points, transform_points, write_points

LPS = np.array([[-1.0, -2.0, 3.0], [-4.0, -5.5, 6.0]])

TEXTS = {
    "header.csv": "x,y,z\n-1,-2,3\n-4,-5.5,6\n",
    "bare.csv": "-1,-2,3\n-4,-5.5,6\n",
    "semicolons.csv": "x;y;z\n-1;-2;3\n-4;-5.5;6\n",
    "blanks.csv": "-1 -2 3\n-4 -5.5 6\n",
    "lps.csv": "label,l,p,s,defined\nA,-1,-2,3,1\nB,-4,-5.5,6,1\n",
    # As Slicer exports a markups node: RAS, quoted labels, a third point that was never placed.
    "ras.csv": '"label","r","a","s","defined","selected","visible","locked","description"\n"A",1,2,3,1,1,1,0,""\n'
    '"B",4,5.5,6,1,1,1,0,""\n"C",0,0,0,0,1,1,0,""\n',
    "lps.fcsv": "# Markups fiducial file version = 5.11\n# CoordinateSystem = LPS\n"
    "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
    '1,-1,-2,3,0,0,0,1,1,1,0,A,"x, y",,2,0\n2,-4,-5.5,6,0,0,0,1,1,1,0,B,,,2,0\n3,7,8,9,0,0,0,1,1,1,0,C,,,0,0\n',
    "ras.fcsv": "# Markups fiducial file version = 4.6\n# CoordinateSystem = 0\n"
    "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
    "a,1,2,3,0,0,0,1,1,1,0,A,,\nb,4,5.5,6,0,0,0,1,1,1,0,B,,\n",
    "lps.mrk.json": json.dumps(
        {
            "markups": [
                {
                    "type": "Fiducial",
                    "coordinateSystem": "LPS",
                    "controlPoints": [
                        {"label": "A", "position": [-1, -2, 3]},
                        {"label": "B", "position": [-4, -5.5, 6], "positionStatus": "defined"},
                        {"label": "C", "position": "", "positionStatus": "undefined"},
                    ],
                }
            ]
        }
    ),
    "ras.mrk.json": json.dumps(
        {
            "markups": [
                {"coordinateSystem": "RAS", "controlPoints": [{"position": [1, 2, 3]}, {"position": [4, 5.5, 6]}]}
            ]
        }
    ),
}


@pytest.mark.parametrize("name", TEXTS)
def test_every_dialect_gives_the_same_lps_points(tmp_path, name):
    (tmp_path / name).write_text(TEXTS[name], encoding="utf-8")
    points = read_points(tmp_path / name)
    np.testing.assert_allclose(points.array, LPS)
    if "A" in TEXTS[name]:
        assert points.labels in (("A", "B"), ("", ""))


def test_a_byte_order_mark_and_empty_lines_do_not_matter(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfX, Y, Z\r\n-1, -2, 3\r\n\r\n-4, -5.5, 6\r\n")
    np.testing.assert_allclose(read_points(tmp_path / "a.csv").array, LPS)


@pytest.mark.parametrize("suffix", [".csv", ".fcsv", ".mrk.json"])
@pytest.mark.parametrize("labels", [(), ("tip, left", 'the "base"')])
def test_written_points_are_read_back_with_their_labels(tmp_path, suffix, labels):
    path = tmp_path / f"p{suffix}"
    write_points(Points(LPS, labels), path)
    again = read_points(path)
    np.testing.assert_allclose(again.array, LPS, atol=1e-6)
    if labels:
        assert again.labels == labels
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", ["fcsv", "mrk.json"])
def test_slicer_itself_reads_what_is_written(tmp_path, suffix):
    slicer = pytest.importorskip("slicer")
    scene = slicer.vtkMRMLScene()
    node = slicer.vtkMRMLMarkupsFiducialNode()
    kind = {"fcsv": "vtkMRMLMarkupsFiducialStorageNode", "mrk.json": "vtkMRMLMarkupsJsonStorageNode"}[suffix]
    storage = getattr(slicer, kind)()
    scene.AddNode(node)
    scene.AddNode(storage)
    path = tmp_path / f"p.{suffix}"
    write_points(Points(LPS, ("A", "B")), path)
    storage.SetFileName(str(path))
    assert storage.ReadData(node)
    ras = np.array([node.GetNthControlPointPosition(n) for n in range(node.GetNumberOfControlPoints())])
    np.testing.assert_allclose(ras * (-1, -1, 1), LPS, atol=1e-6)
    assert node.GetNthControlPointLabel(1) == "B"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "x,y,z\n", "no points"),
        ("a.csv", "x,y,z\n1,2\n", "three numbers"),
        ("a.csv", "1,2\n3,4\n", "three columns"),
        ("a.csv", "u,v,w\n1,2,3\n", "header"),
        ("a.csv", "x,y,z\n1,2,nan\n", "finite"),
        ("a.txt", "1,2,3\n", "extension"),
        ("a.fcsv", "# CoordinateSystem = IJK\n1,2,3,4\n", "IJK"),
        ("a.mrk.json", "{}", "three numbers"),
        ("a.mrk.json", "no json", "three numbers"),
        ("a.mrk.json", '{"markups": []}', "0 markups"),
    ],
)
def test_unusable_files_get_one_plain_sentence(tmp_path, name, text, words):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=words) as error:
        read_points(tmp_path / name)
    assert name in str(error.value)


def test_missing_and_binary_files_get_one_plain_sentence(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_points(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="cannot be read"):
        read_points(tmp_path / "a.csv")


def test_points_are_not_written_to_unknown_places(tmp_path):
    for path, words in ((tmp_path / "a.txt", "extension"), (tmp_path / "no" / "a.csv", "cannot be written")):
        with pytest.raises(InputError, match=words):
            write_points(Points(LPS), path)
    assert not list(tmp_path.iterdir())


def test_transform_points_follows_the_transform_and_keeps_labels():
    moved = transform_points(Points(LPS, ("A", "B")), sitk.TranslationTransform(3, (1.0, 2.0, 3.0)))
    np.testing.assert_allclose(moved.array, LPS + np.array((1, 2, 3)))
    assert moved.labels == ("A", "B")
