"""The table of pairs: what is understood, and the row and column of what is not."""

import pytest
from FoundationRegLib.cohort.pairs import folder_name, read_pairs
from FoundationRegLib.errors import InputError

PLACES = ("fixed.nii.gz", "moving.nii.gz", "other.nii.gz", "labels.nii.gz")


@pytest.fixture
def folder(tmp_path):
    for name in PLACES:
        (tmp_path / name).touch()
    return tmp_path


def write(folder, content, encoding="utf-8"):
    path = folder / "pairs.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def refused(path, *parts, **options):
    """Reading must fail with one sentence that holds all ``parts``."""
    with pytest.raises(InputError) as caught:
        read_pairs(path, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    for part in parts:
        assert part in sentence, sentence


def test_paths_start_at_the_tables_folder_and_every_column_is_kept(folder):
    path = write(
        folder,
        "id,task,fixed,moving,fixed_labels,moving_labels,fixed_points,moving_points,age\n"
        "a,t1,fixed.nii.gz,moving.nii.gz,labels.nii.gz,labels.nii.gz,,,61\n"
        "b,,fixed.nii.gz,./sub/../other.nii.gz,,,,,\n",
    )
    first, second = read_pairs(path)
    assert first.files == {
        "fixed": str(folder / "fixed.nii.gz"),
        "moving": str(folder / "moving.nii.gz"),
        "fixed_labels": str(folder / "labels.nii.gz"),
        "moving_labels": str(folder / "labels.nii.gz"),
    }
    assert (first.id, first.task, first.row, first.facts) == ("a", "t1", 2, {"age": "61"})
    assert second.files["moving"] == str(folder / "other.nii.gz") and second.task == ""


def test_relative_paths_can_start_elsewhere_and_home_is_known(folder, tmp_path_factory, monkeypatch):
    table = tmp_path_factory.mktemp("tables")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    path = write(table, f"fixed,moving\nfixed.nii.gz,moving.nii.gz\n~/fixed.nii.gz,{folder}/other.nii.gz\n")
    refused(path, "row 2", "column fixed", "fixed.nii.gz does not exist")
    assert [p.files["fixed"] for p in read_pairs(path, root=folder)] == [str(folder / "fixed.nii.gz")] * 2
    refused(path, "does not exist", root=folder / "nowhere")


def test_the_studys_header_is_understood(folder):
    path = write(
        folder, "mov_volume,fix_volume,mov_label,fix_label\nmoving.nii.gz,fixed.nii.gz,labels.nii.gz,labels.nii.gz\n"
    )
    (pair,) = read_pairs(path)
    assert pair.files["fixed"].endswith("fixed.nii.gz") and pair.files["moving"].endswith("moving.nii.gz")
    assert pair.files["moving_labels"].endswith("labels.nii.gz") and pair.id == "0001"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_byte_order_marks_delimiters_mixed_line_ends_and_names_of_all_kinds(folder, delimiter, encoding):
    name = "Größe, Übersicht 患者 1.nii.gz"
    (folder / name).touch()
    rows = ["ID,Fixed,Moving", f'"pa, 1",fixed.nii.gz,"{name}"', " p2 , fixed.nii.gz ,other.nii.gz", ",,"]
    if delimiter != ",":
        rows = [row.replace(",", delimiter) for row in rows]
        name = name.replace(",", delimiter)
        (folder / name).touch()
    path = write(folder, f"{rows[0]}\r\n{rows[1]}\r\r{rows[2]}\n{rows[3]}\n", encoding)
    first, second = read_pairs(path)
    assert first.files["moving"] == str(folder / name)
    assert second.id == "p2" and second.files["moving"] == str(folder / "other.nii.gz")
    assert second.row == 4, "the empty line counts, as a spreadsheet shows it"


def test_wrong_headers(folder):
    refused(folder / "absent.csv", "does not exist")
    refused(write(folder, ""), "is empty")
    refused(write(folder, "fixed,moving\n\n"), "no pairs")
    refused(
        write(folder, "image1,image2\na,b\n"), "row 1", "no column fixed and no column moving", "'image1', 'image2'"
    )
    refused(write(folder, "fixed,fix_volume,moving\n"), "row 1", "two columns mean fixed", "'fix_volume'")
    refused(write(folder, "fixed,moving,fixed_label,moving_lables\n"), "'moving_lables'", "moving_labels")
    refused(write(folder, "fixed,moving,fixed_labels\n"), "row 1", "fixed_labels", "moving_labels")
    refused(write(folder, b"fixed,moving\nfixed.nii.gz,\xe9.nii.gz\n"), "row 2", "UTF-8")
    refused(write(folder, 'fixed,moving\nfixed.nii.gz,"moving.nii.gz\n'), "line", "quotation marks")


def test_wrong_rows(folder):
    head = "id,fixed,moving,fixed_labels,moving_labels\n"
    good = "a,fixed.nii.gz,moving.nii.gz,,\n"
    refused(write(folder, head + good + "b,fixed.nii.gz,,,\n"), "row 3", "column moving", "empty")
    refused(write(folder, head + good + "b,fixed.nii.gz\n"), "row 3", "column moving", "empty")
    refused(
        write(folder, head + good + "b,fixed.nii.gz,other.nii.gz,labels.nii.gz,\n"), "row 3", "column moving_labels"
    )
    refused(
        write(folder, head + good + "b,fixed.nii.gz,other,1.nii.gz,labels.nii.gz,labels.nii.gz\n"),
        "row 3",
        "6 cells for 5 columns",
    )
    refused(write(folder, head + good + "\nA,fixed.nii.gz,other.nii.gz,,\n"), "row 4", "column id", "'A'", "row 2")
    refused(write(folder, head + good + "b,fixed.nii.gz,moving.nii.gz,,\n"), "row 3", "same pair", "row 2")
    missing = write(folder, head + good + "b,fixed.nii.gz,gone.nii.gz,,\nc,lost.nii.gz,moving.nii.gz,,\n")
    refused(missing, "row 3", "column moving", "gone.nii.gz does not exist", "1 more cell", "--skip-missing")
    assert [pair.id for pair in read_pairs(missing, must_exist=False)] == ["a", "b", "c"]


def test_a_hundred_thousand_rows(folder):
    rows = [f"p{n},fixed.nii.gz,moving.nii.gz,{n}" for n in range(100_000)]
    path = write(folder, "\n".join(["id,fixed,moving,task", *rows]))
    pairs = read_pairs(path)
    assert len(pairs) == 100_000 and pairs[-1].row == 100_001
    rows[77_776] = "p5,fixed.nii.gz,moving.nii.gz,x"
    refused(write(folder, "\n".join(["id,fixed,moving,task", *rows])), "row 77778", "column id", "row 7")


def test_folders_have_names_that_every_system_takes():
    assert folder_name("case 01-α") == "case 01-α"
    names = ["a/b", "a:b", "..", "con", "nul.txt", "x" * 300, "a\\b", "", "a.", " a"]
    folders = [folder_name(name) for name in names]
    assert len({folder.lower() for folder in folders}) == len(names)
    for folder in folders:
        assert folder and len(folder) < 100 and not set(folder) & set('/\\:*?"<>|') and folder.strip(" .") == folder
        assert folder.split(".")[0].lower() not in ("con", "nul")
