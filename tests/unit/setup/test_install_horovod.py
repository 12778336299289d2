"""launch/install_horovod: the source is edited exactly or not at all; a cached wheel is used only where it fits."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[3] / "launch"
SCRIPT = LAUNCH / "install_horovod"
sys.path.insert(0, str(LAUNCH))  # where the script finds its own modules when it is run

from horovod_build import build, edits, progress, refusal, survey  # noqa: E402


@pytest.fixture
def source(tmp_path) -> Path:
    """A source tree in which every edit matches once, between lines that must stay."""
    for edit in edits.EDITS:
        file = tmp_path / edit.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"before\n{edit.old}\nafter\n")
    return tmp_path


@pytest.fixture
def recipe():
    return survey.Recipe(
        horovod="0.28.1",
        tensorflow="2.21.0",
        tensorflow_cuda="none",
        python="cpython-311",
        platform="linux-x86_64-glibc2.41",
        mpi="Open MPI 5.0.7",
        cuda="none",
        nccl="none",
        edits="0123456789",
    )


def contents(tree: Path) -> dict[Path, str]:
    return {file: file.read_text() for file in tree.rglob("*") if file.is_file()}


def test_every_edit_is_made_and_nothing_else_changes(source):
    edits.apply_edits(source)
    for edit in edits.EDITS:
        assert (source / edit.path).read_text() == f"before\n{edit.new}\nafter\n"
        assert edit.reason


@pytest.mark.parametrize("matches", [0, 2])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_an_edit_that_does_not_match_exactly_once_is_refused_before_anything_is_written(source, matches, which):
    edit = edits.EDITS[which]
    (source / edit.path).write_text("before\n" + edit.old * matches + "after\n")
    unchanged = contents(source)
    with pytest.raises(refusal.Refusal, match=rf"{edit.path}.*exactly 1 match.*found {matches}.*Fix: ") as refused:
        edits.apply_edits(source)
    assert refused.value.code == 70
    assert "\n" not in str(refused.value)
    assert contents(source) == unchanged


def test_a_missing_file_is_refused_as_zero_matches(source):
    (source / edits.EDITS[0].path).unlink()
    with pytest.raises(refusal.Refusal, match="found 0"):
        edits.apply_edits(source)


def test_the_cache_key_changes_with_each_ingredient(recipe):
    keys = {recipe.key}
    for field in dataclasses.fields(recipe):
        changed = dataclasses.replace(recipe, **{field.name: getattr(recipe, field.name) + "x"})
        assert changed.label != recipe.label, field.name
        keys.add(changed.key)
    assert len(keys) == 1 + len(dataclasses.fields(recipe))


def test_the_cache_key_is_one_folder_name(recipe):
    assert Path(recipe.key).name == recipe.key
    assert " " not in recipe.key


def test_a_wheel_in_the_cache_is_whole_or_absent(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wheel = tmp_path / "horovod-0.28.1-cp311-linux_x86_64.whl"
    wheel.write_bytes(b"wheel")
    assert build.cached_wheel(recipe) is None

    def killed_before_the_rename(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(build.os, "replace", killed_before_the_rename)
        with pytest.raises(KeyboardInterrupt):
            build.keep(wheel, recipe)
    assert build.cached_wheel(recipe) is None
    assert build.keep(wheel, recipe) == build.cached_wheel(recipe)
    assert build.cached_wheel(recipe).read_bytes() == b"wheel"


@pytest.mark.parametrize(("present", "named"), [([], "g++ make"), (["make"], "g++"), (["g++"], "make")])
def test_a_missing_compiler_is_one_line_with_the_package_and_the_way_without(tmp_path, monkeypatch, present, named):
    for tool in present:
        (tmp_path / tool).write_text("#!/bin/sh\n")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(refusal.Refusal) as refused:
        build.require_compiler()
    assert refused.value.code == 69
    assert str(refused.value).endswith(f"Fix: apt-get install {named}")
    assert "strategy=mirrored" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_settings_of_the_caller_do_not_leak_into_the_build(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("HOROVOD_GPU_OPERATIONS", "MPI")
    python, tensorflow = Path(sys.executable), tmp_path / "tensorflow"
    found = survey.Survey(python, tensorflow, recipe, cuda_home=None, nccl=None, installed=None)
    env = build.build_environment(found, tmp_path)
    assert "HOROVOD_GPU_OPERATIONS" not in env
    assert env["HOROVOD_WITH_MPI"] == "1"
    without = dataclasses.replace(found, recipe=dataclasses.replace(recipe, mpi="none"))
    assert build.build_environment(without, tmp_path)["HOROVOD_WITHOUT_MPI"] == "1"


def test_nccl_of_a_wheel_gets_the_link_that_a_linker_asks_for(tmp_path, monkeypatch):
    monkeypatch.delenv("HOROVOD_NCCL_HOME", raising=False)
    home = tmp_path / "site-packages" / "nvidia" / "nccl"
    (home / "include").mkdir(parents=True)
    (home / "lib").mkdir()
    (home / "include" / "nccl.h").write_text("#define NCCL_MAJOR 2\n#define NCCL_MINOR 27\n#define NCCL_PATCH 3\n")
    (home / "lib" / "libnccl.so.2").write_bytes(b"library")
    nccl = survey.find_nccl(tmp_path / "site-packages", None)
    assert (nccl.version, nccl.from_wheel) == ("2.27.3", True)
    settings = build.nccl_settings(nccl, tmp_path)
    assert (Path(settings["HOROVOD_NCCL_LIB"]) / "libnccl.so").read_bytes() == b"library"
    assert (Path(settings["HOROVOD_NCCL_INCLUDE"]) / "nccl.h").exists()


@pytest.mark.parametrize(
    ("build_info", "cuda"),
    [
        ("build_info = collections.OrderedDict([('is_cuda_build', False)])", "none"),
        (
            "build_info = collections.OrderedDict([('cuda_version', '12.5.1'), ('is_cuda_build', True)])",
            "12.5.1",
        ),
        ("", "none"),
    ],
)
def test_the_build_of_tensorflow_is_read_without_importing_it(tmp_path, build_info, cuda):
    file = tmp_path / "python" / "platform" / "build_info.py"
    file.parent.mkdir(parents=True)
    file.write_text(build_info)
    assert survey.tensorflow_cuda(tmp_path) == cuda


@pytest.mark.parametrize(
    ("log", "line"),
    [
        (
            "[ 3%] x\na.cc:7:1: error: no such thing\nmake: Error 1\nerror: subprocess-exited-with-error\n",
            "a.cc:7:1: error: no such thing",
        ),
        (
            "CMake Error at CMakeLists.txt:3 (find_package):\n  Could not find NCCL\n",
            "CMake Error at CMakeLists.txt:3 (find_package): Could not find NCCL",
        ),
        (
            "cc1plus: fatal error: x: No space left on device\n",
            "cc1plus: fatal error: x: No space left on device",
        ),
        (
            "  [ 31%] Building CXX object gloo/transport/tcp/error.cc.o\n"
            "  cd /tmp/x && /usr/bin/c++ -c error.cc -o error.cc.o\n"
            "  c++: error: tl/include: linker input file not found: No such file or directory\n"
            "  gmake[2]: *** [build.make:79: common.cc.o] Error 1\n"
            "  subprocess.CalledProcessError: Command '['cmake']' returned non-zero exit status 2.\n"
            "error: subprocess-exited-with-error\nERROR: Failed building wheel for horovod\n",
            "c++: error: tl/include: linker input file not found: No such file or directory",
        ),
        (
            "/usr/bin/ld: warning: x.o: missing .note.GNU-stack section\n"
            "/usr/bin/ld: ops.cc.o: in function `main':\nops.cc:(.text+0x5): undefined reference to `f'\n"
            "collect2: error: ld returned 1 exit status\n",
            "ops.cc:(.text+0x5): undefined reference to `f'",
        ),
        (
            "/usr/bin/ld: cannot find -lnccl: No such file or directory\ncollect2: error: ld returned 1\n",
            "/usr/bin/ld: cannot find -lnccl: No such file or directory",
        ),
        (
            "g++: internal compiler error: Killed (program cc1plus)\nmake: *** [x.o] Error 4\n",
            "g++: internal compiler error: Killed (program cc1plus)",
        ),
        (
            "CMake Error: CMake was unable to find a build program\n-- Configuring incomplete, errors occurred!\n",
            "CMake Error: CMake was unable to find a build program",
        ),
        (
            "Traceback (most recent call last):\n  File x\nModuleNotFoundError: No module named 'wheel'\n"
            "error: metadata-generation-failed\n",
            "ModuleNotFoundError: No module named 'wheel'",
        ),
        (
            "WARNING: Retrying after connection broken\n"
            "ERROR: Could not find a version that satisfies the requirement horovod==0.28.1\n"
            "ERROR: No matching distribution found for horovod==0.28.1\n",
            "ERROR: Could not find a version that satisfies the requirement horovod==0.28.1",
        ),
        ("something\nunheard of\n\n", "unheard of"),
        ("", "(the log is empty)"),
    ],
)
def test_a_failed_build_is_told_by_its_telling_line(log, line):
    assert progress.telling_line(log) == line
    refusal = progress.build_failure("compiling Horovod", Path("/logs/x.log"), log)
    assert str(refusal).startswith(f"compiling Horovod failed: {line} (log: /logs/x.log). Fix: ")


@pytest.mark.parametrize(
    ("line", "fix"),
    [
        ("c++: fatal error: Killed signal terminated program cc1plus", "TL_DIST_BUILD_JOBS=1"),
        ("g++: internal compiler error: Killed (program cc1plus)", "TL_DIST_BUILD_JOBS=1"),
        ("cc1plus: fatal error: x: No space left on device", "TMPDIR"),
        ("ERROR: No matching distribution found for horovod==0.28.1", "PIP_INDEX_URL"),
        ("/usr/bin/ld: cannot find -lnccl: No such file or directory", "development package"),
        ("a.cc:7:1: error: no such thing", "correct what that line names"),
    ],
)
def test_the_fix_is_that_of_the_fault(line, fix):
    assert fix in str(progress.build_failure("compiling Horovod", Path("x.log"), line)).split(". Fix: ")[1]


def test_a_temporary_folder_with_a_blank_is_passed_over(tmp_path, monkeypatch, capsys):
    stated = tmp_path / "my disk"
    stated.mkdir()
    link = tmp_path / "plain"  # CMake would see what it points to
    link.symlink_to(stated)
    for folder in (stated, link):
        monkeypatch.setattr(build.tempfile, "tempdir", str(folder))
        with build.work_folder(progress.Progress()) as made:
            assert re.fullmatch(r"/(var/)?tmp/tl_dist-horovod-\w+", made)
        assert not Path(made).exists()
        assert f"Horovod does not compile in '{folder}'" in capsys.readouterr().out
    monkeypatch.setattr(build.os, "access", lambda *_: False)
    with pytest.raises(refusal.Refusal, match=r"plain.*Fix: set TMPDIR to ") as refused:
        build.work_folder(progress.Progress())
    assert refused.value.code == 73


def test_a_tensorflow_outside_the_environment_is_found_by_a_plain_path(recipe, tmp_path):
    tensorflow = tmp_path / "Jane Doe" / "site-packages" / "tensorflow"
    tensorflow.mkdir(parents=True)
    (tensorflow / "__init__.py").touch()
    found = survey.Survey(Path(sys.executable), tensorflow, recipe, cuda_home=None, nccl=None, installed=None)
    work = tmp_path / "work"
    work.mkdir()
    found = build.plain_paths(found, work)
    where = [found.python, "-c", "import tensorflow; print(tensorflow.__file__)"]
    env = build.build_environment(found, work)
    done = subprocess.run(where, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == f"{work}/packages/tensorflow/__init__.py\n"


@pytest.mark.parametrize("arguments", [["--gpu", "--no-gpu"], ["--unheard-of"], ["--python", "/nowhere/python"]])
def test_wrong_usage_is_one_line_and_exit_64(arguments):
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 64
    assert done.stderr.count("\n") == 1
    assert "Fix: " in done.stderr
