"""What ships is complete and consistent: CMake lists, wheel, icons, index description, versions."""

import importlib.util
import itertools
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def cmake_list(variable):
    return re.search(rf"set\({variable}\n([^)]*)\)", read("FoundationReg/CMakeLists.txt")).group(1).split()


def tracked_files():
    answer = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if answer.returncode:
        pytest.skip("not a git checkout")
    return [name for name in answer.stdout.splitlines() if (ROOT / name).exists()]


@pytest.fixture(scope="module")
def dev():
    spec = importlib.util.spec_from_file_location("foundationreg_dev", ROOT / "dev.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("variable", ["MODULE_PYTHON_SCRIPTS", "MODULE_PYTHON_RESOURCES"])
def test_cmake_lists_every_file_that_ships(dev, variable):
    listed, on_disk = cmake_list(variable), dev.shipped_files()[variable]
    assert sorted(listed) == on_disk, "run `python dev.py format` to bring the lists up to date"


def test_cmake_lists_are_complete_in_git():
    prefix = "FoundationReg/"
    tracked = {name.removeprefix(prefix) for name in tracked_files() if name.startswith(prefix)} - {"CMakeLists.txt"}
    assert tracked == set(cmake_list("MODULE_PYTHON_SCRIPTS")) | set(cmake_list("MODULE_PYTHON_RESOURCES"))


def test_wheel_holds_every_module_and_resource(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(tmp_path)]
    source = tmp_path / "source"  # a copy: building leaves a folder `build` in the source tree
    for name in tracked_files():
        if name.startswith(("FoundationReg/", "pyproject.toml", "README.md", "LICENSE")):
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    subprocess.run([*build, str(source)], check=True)
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    scripts = [name for name in cmake_list("MODULE_PYTHON_SCRIPTS") if name.startswith("FoundationRegLib/")]
    resources = [f"FoundationRegLib/{name}" for name in cmake_list("MODULE_PYTHON_RESOURCES")]
    tracked = set(tracked_files())
    expected = {name for name in scripts if f"FoundationReg/{name}" in tracked}
    expected |= {name for name in resources if name.replace("FoundationRegLib", "FoundationReg", 1) in tracked}
    assert expected <= names


def test_extension_name_and_dependencies_agree_with_the_index_description():
    description, cmake = json.loads(read("Resources/FoundationReg.json")), read("CMakeLists.txt")
    assert re.search(r"^project\((\w+)\)", cmake, re.M).group(1) == "FoundationReg"
    assert re.search(r"EXTENSION_DEPENDS ([^)]+)\)", cmake).group(1).split() == description["build_dependencies"]
    allowed = {"$schema", "build_dependencies", "build_subdirectory", "category", "scm_revision", "scm_url", "tier"}
    assert set(description) <= allowed and description["category"] == "Registration"
    assert "schema-v1.0.2.json" in description["$schema"] and 1 <= description["tier"] <= 5
    assert re.search(r"/Slicer[-_]?\w+\.git$", description["scm_url"]), "the index wants repositories called Slicer..."
    homepage = re.search(r'EXTENSION_HOMEPAGE "([^"]+)"', cmake).group(1)
    assert description["scm_url"] == f"{homepage}.git"


def test_the_public_address_stands_in_one_place():
    owner = re.search(r'EXTENSION_HOMEPAGE "https://github.com/([^"]+)"', read("CMakeLists.txt")).group(1)
    texts = [name for name in tracked_files() if Path(name).suffix in {".py", ".md", ".txt", ".json", ".toml", ".ui"}]
    assert [name for name in texts if owner in read(name)] == [
        "CMakeLists.txt",
        "FoundationReg/FoundationReg.py",
        "Resources/FoundationReg.json",
    ], "one place, and where `python dev.py format` writes it"


def test_pictures_named_on_the_home_page_exist():
    cmake = read("CMakeLists.txt")
    urls = re.search(r'EXTENSION_ICONURL "([^"]+)"', cmake).group(1).split()
    urls += re.search(r'EXTENSION_SCREENSHOTURLS "([^"]+)"', cmake).group(1).split()
    for url in urls:
        assert (ROOT / url.split("/main/", 1)[1]).is_file(), url


@pytest.mark.parametrize("name", ["FoundationReg.png", "FoundationReg/Resources/Icons/FoundationReg.png"])
def test_icon_is_128_pixels_and_transparent_at_its_corners(name):
    icon = Image.open(ROOT / name)
    assert icon.format == "PNG" and icon.size == (128, 128) and icon.mode == "RGBA"
    assert icon.getpixel((0, 0))[3] == 0 and icon.getpixel((64, 64))[3] == 255


def test_licence_is_apache_2():
    text = read("LICENSE")
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text


def test_every_dependency_has_a_pinned_version():
    project = tomllib.loads(read("pyproject.toml"))["project"]
    pins = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in read("constraints.txt").splitlines()}
    needed = list(itertools.chain(project["dependencies"], *project["optional-dependencies"].values()))
    names = {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", need).group()).lower() for need in needed}
    assert names - {"foundationreg"} <= pins
    assert "torchvision" not in pins


def test_packages_of_the_wheel_are_those_on_disk():
    packages = tomllib.loads(read("pyproject.toml"))["tool"]["setuptools"]["packages"]
    library = ROOT / "FoundationReg" / "FoundationRegLib"
    on_disk = {".".join(p.parent.relative_to(library.parent).parts) for p in library.rglob("__init__.py")}
    assert set(packages) == on_disk | {"FoundationRegLib.Resources"}


def test_no_file_names_a_place_on_the_developers_machine():
    folders = "|".join(("work", "root", "tmp", "home", "Users"))
    machine_path = re.compile(rf"(?<![\w.~}}])/(?:{folders})/[\w.-]+")
    for name in tracked_files():
        if Path(name).suffix in {".py", ".md", ".txt", ".json", ".toml", ".ui", ".j2", ".html", ".yml", ""}:
            found = machine_path.search(read(name))
            assert not found, f"{name}: {found.group()}"


def test_importing_the_package_and_asking_for_help_loads_nothing_heavy():
    code = (
        "import sys, contextlib, io\n"
        "from FoundationRegLib.app import cli\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): cli.main(['--help'])\n"
        "print([n for n in ('torch', 'SimpleITK', 'scipy', 'matplotlib', 'transformers') if n in sys.modules])"
    )
    library = str(ROOT / "FoundationReg")
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=library)
    assert answer.stdout.strip() == "[]", answer.stdout + answer.stderr


def test_dev_script_reuses_an_installation_until_versions_change(dev, tmp_path, monkeypatch):
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text(read(name), encoding="utf-8")
    monkeypatch.setattr(dev, "ROOT", tmp_path)
    before = dev.wanted_setup((3, 11))
    assert dev.wanted_setup((3, 11)) == before != dev.wanted_setup((3, 12))
    (tmp_path / "constraints.txt").write_text("torch==0.0.1\n", encoding="utf-8")
    assert dev.wanted_setup((3, 11)) != before
    assert dev.pinned("torch") == "torch==0.0.1"


def test_dev_script_looks_for_another_python_when_this_one_does_not_suit(dev, monkeypatch):
    versions = {sys.executable: (3, 14), "python3.12": None, "python3.11": (3, 11)}
    monkeypatch.setattr(dev, "version_of", lambda command: versions.get(command[0]))
    monkeypatch.setattr(dev.shutil, "which", lambda name: name)
    assert dev.suitable_python() == ["python3.11"]
    versions["python3.11"] = None
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or 3\.12"):
        dev.suitable_python()


def test_dev_script_needs_only_the_standard_library():
    command = [sys.executable, "-I", "-S", "dev.py", "--help"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0 and "dev.py demo" in answer.stdout, answer.stderr
