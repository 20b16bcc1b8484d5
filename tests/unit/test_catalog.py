"""Programs by name and file, and the errors that say what is wrong with them."""

from __future__ import annotations

import inspect
import sys

import pytest

from ppl_models.catalog import CATALOG, build, locate, resolve, source_file
from ppl_models.errors import PplError, ProgramError, UnknownNameError, describe
from ppl_models.program import Program
from ppl_models.vae import VAE

PROGRAM = """
class Story:
    def __init__(self, width=1):
        self.width = width
    def model(self, x=None, *, size=1): ...
    def guide(self, x): ...
"""


@pytest.fixture(autouse=True)
def _modules_as_before():
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def write(tmp_path):
    """Write a file of the user's and give its path as a string."""

    def write(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize("name", CATALOG)
def test_every_name_of_the_catalog_resolves_to_a_documented_program(name):
    constructor = resolve(name)
    assert hasattr(constructor, "model") or inspect.isfunction(constructor)
    assert constructor.__doc__
    assert CATALOG[name].summary
    assert CATALOG[name].reference


def test_a_name_and_its_module_spec_are_the_same_class():
    assert resolve("vae") is VAE
    assert resolve("ppl_models.vae:VAE") is VAE


def test_build_passes_the_arguments():
    assert build("vae", x_shape=(1, 4, 4), latent_dim=3).prior().event_shape == (3,)


def test_a_class_of_a_file(write):
    program = build(write("story.py", PROGRAM) + ":Story", width=7)
    assert program.width == 7


def test_a_file_by_a_relative_path(write, tmp_path, monkeypatch):
    write("story.py", PROGRAM)
    monkeypatch.chdir(tmp_path)
    assert resolve("story.py:Story").__name__ == "Story"


def test_a_file_with_plain_functions_is_a_program(write):
    path = write("plain.py", "def model(x=None): return 'm'\ndef guide(x): return 'g'\n")
    program = build(path)
    assert isinstance(program, Program)
    assert program.model() == "m"
    assert program.guide(0) == "g"


def test_a_ready_made_object_of_a_file(write):
    path = write("ready.py", PROGRAM + "story = Story(5)\n")
    assert build(f"{path}:story").width == 5


def test_a_function_that_makes_a_program(write):
    path = write("made.py", PROGRAM + "def wide(): return Story(9)\n")
    assert build(f"{path}:wide").width == 9


def test_a_file_read_again_is_as_it_is_now(write):
    first = resolve(write("changing.py", PROGRAM) + ":Story")
    second = resolve(write("changing.py", PROGRAM + "    added = 1\n") + ":Story")
    assert not hasattr(first, "added")
    assert second.added == 1


def test_a_file_imports_its_neighbour_and_the_path_is_as_before(write):
    write("catalog_neighbour.py", "VALUE = 41\n")
    path = write("uses.py", "from catalog_neighbour import VALUE\n" + PROGRAM)
    before = list(sys.path)
    assert resolve(f"{path}:Story").__init__.__globals__["VALUE"] == 41
    assert sys.path == before


def test_an_unknown_name_gives_near_misses_and_the_ways_to_name_a_program():
    with pytest.raises(UnknownNameError, match=r"unknown model 'vea'\. Did you mean 'vae'") as it:
        resolve("vea")
    assert "`path/to/file.py:Name`" in str(it.value)


def test_an_unknown_class_of_a_module_gives_near_misses_of_that_module():
    with pytest.raises(UnknownNameError, match=r"name in ppl_models\.vae 'VEA'.*'VAE'") as it:
        resolve("ppl_models.vae:VEA")
    assert "make_likelihood" not in str(it.value)  # imported there, not of there


def test_an_unknown_class_of_a_file_gives_near_misses_of_that_file(write):
    path = write("story.py", PROGRAM)
    with pytest.raises(UnknownNameError, match=r"name in story 'Storey'.*Did you mean 'Story'"):
        resolve(f"{path}:Storey")


def test_a_class_without_model_is_refused(write):
    path = write("half.py", "class Half:\n    def guide(self, x): ...\n")
    with pytest.raises(ProgramError, match=r"class Half of .* has no `model`"):
        resolve(f"{path}:Half")


@pytest.mark.parametrize(
    ("text", "lacks"),
    [
        ("def model(x=None): ...\n", "no function guide;"),
        ("def guide(x): ...\n", "no function model;"),
        ("", "no function model and no function guide;"),
    ],
)
def test_a_file_without_its_functions_says_which(write, text, lacks):
    with pytest.raises(ProgramError, match=lacks):
        resolve(write("plain.py", text))


def test_a_thing_that_is_no_program_is_refused(write):
    path = write("number.py", "story = 3\n")
    with pytest.raises(ProgramError, match="neither a program nor a constructor"):
        resolve(f"{path}:story")


def test_a_missing_file_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ProgramError, match=r"there is no file 'nothing\.py'") as it:
        resolve("nothing.py:Story")
    assert str(tmp_path) in str(it.value)


def test_a_missing_module_is_named():
    with pytest.raises(ProgramError, match=r"cannot import 'ppl_models\.vaee'"):
        resolve("ppl_models.vaee:VAE")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ny = x / 0\n", "ZeroDivisionError: division by zero .*line 2"),
        ("x = 1\n\ndef f(:\n", r"SyntaxError: .*line 3"),
        (
            "import no_such_package_here\n",
            "ModuleNotFoundError: No module named 'no_such_package_here'.*line 1",
        ),
        # The place is the user's line, not the line of the library that it called.
        ("import json\n\njson.loads('{')\n", r"JSONDecodeError: .*\(broken\.py, line 3\)"),
    ],
)
@pytest.mark.parametrize("relative", [False, True])
def test_a_file_that_cannot_be_imported_names_the_line(
    write, text, message, relative, tmp_path, monkeypatch
):

    # absolute path of the frame with the relative path of the spec.
    monkeypatch.chdir(tmp_path)
    path = write("broken.py", text)
    with pytest.raises(ProgramError, match=rf"broken\.py cannot be imported: {message}"):
        resolve(f"{'broken.py' if relative else path}:Story")


def test_a_module_that_cannot_be_imported_is_a_program_error(write, tmp_path, monkeypatch):

    write("catalog_broken/__init__.py", "")
    write("catalog_broken/story.py", "x = 1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ProgramError, match=r"catalog_broken\.story.*division by zero.*line 1"):
        resolve("catalog_broken.story:Story")


@pytest.mark.parametrize("spec", [":VAE", ".vae:VAE"])
def test_a_spec_without_a_module_is_refused(spec):

    with pytest.raises(PplError):
        resolve(spec)


def test_a_constructor_that_raises_names_the_users_line_and_the_arguments(write):
    body = "import json\nclass Story:\n    def __init__(self, text):\n        json.loads(text)\n"
    path = write("raises.py", body + "    def model(self): ...\n")
    with pytest.raises(ProgramError, match=r"Story\(text='\{'\) cannot be made") as it:
        build(f"{path}:Story", text="{")
    assert "(raises.py, line 4)" in str(it.value)


def test_an_unknown_argument_is_named_without_a_line_of_the_catalog(write):

    with pytest.raises(ProgramError, match=r"vae\(latent=3\) cannot be made.*'latent'") as it:
        build("vae", latent=3)
    assert "catalog.py" not in str(it.value)


def test_a_constructors_own_ppl_error_comes_through():
    with pytest.raises(UnknownNameError, match="Did you mean 'normal'"):
        build("vae", likelihood="normall")


def test_locate_makes_a_files_path_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = tmp_path.resolve()
    assert locate("story.py:Story") == f"{here / 'story.py'}:Story"
    assert locate("story.py") == str(here / "story.py")
    assert source_file("sub/story.py:Story") == here / "sub" / "story.py"


@pytest.mark.parametrize("spec", ["vae", "ppl_models.vae:VAE", "foo.pyro_models:Name"])
def test_an_installed_program_has_no_file(spec):
    assert source_file(spec) is None
    assert locate(spec) == spec


def test_a_package_with_py_in_its_name_is_a_package(write, tmp_path, monkeypatch):
    write("catalog_foo/__init__.py", "")
    write("catalog_foo/pyro_models.py", PROGRAM)
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve("catalog_foo.pyro_models:Story").__module__ == "catalog_foo.pyro_models"


def test_errors_are_value_errors():
    assert issubclass(PplError, ValueError)
    assert issubclass(ProgramError, PplError)
    assert issubclass(UnknownNameError, PplError)


def test_an_unknown_name_lists_the_known_ones_sorted_and_guesses_only_near_ones():
    message = str(UnknownNameError("colour", "zzz", ["red", "blue"], "Or none."))
    assert message == "unknown colour 'zzz'. There are: blue, red. Or none."
    assert "Did you mean 'blue'?" in str(UnknownNameError("colour", "bleu", ["red", "blue"]))


def test_describe_is_short_and_says_where():
    try:
        raise KeyError("\n".join(["a" * 900, "second", "third"]))
    except KeyError as error:
        told = describe(error)
    assert told.startswith("KeyError: ")
    assert "third" not in describe(ValueError("first\n\nsecond\nthird"))
    assert len(told) < 500
    assert "(test_catalog.py, line " in told
