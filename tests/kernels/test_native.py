"""How the C++ comes to be: built once, shared, done without where it cannot be had."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from pocketrec import embeddings
from pocketrec.kernels import gather, native

HERE = Path(__file__).parent


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )


def test_without_a_compiler_everything_works_and_says_so(tmp_path):
    code = (
        "import torch\n"
        "from pocketrec import embeddings\n"
        "from pocketrec.kernels import native\n"
        "module = embeddings.build('robe', cardinalities=[50, 900], dim=8, ratio=10, seed=0)\n"
        "print(module(torch.tensor([[3, 4]])).flatten().tolist())\n"
        "print(native.problem('robe'), sorted(native.missing()))\n"
    )
    shown = python(code, CXX="no-such-compiler", XDG_CACHE_HOME=str(tmp_path))
    values, problem = shown.stdout.splitlines()
    module = embeddings.build("robe", cardinalities=[50, 900], dim=8, ratio=10, seed=0)
    assert eval(values) == module(torch.tensor([[3, 4]])).flatten().tolist()
    assert problem == "no C++ compiler: no-such-compiler does not run (install g++) ['gather', 'robe']"


def test_a_build_that_fails_leaves_a_working_package(tmp_path):
    code = "from pocketrec.kernels import native; print(native.library('gather'), native.problem('gather'))"
    shown = python(code, POCKETREC_CXXFLAGS="-no-such-flag", XDG_CACHE_HOME=str(tmp_path)).stdout
    assert shown.startswith("None") and "no-such-flag" in shown
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.skipif(bool(native.problem("gather")), reason=native.problem("gather"))
def test_built_once_and_kept(tmp_path):
    code = "from pocketrec.kernels import native; assert native.library('gather')"
    for _ in range(2):
        assert python(code, XDG_CACHE_HOME=str(tmp_path)).returncode == 0
    (built,) = tmp_path.rglob("*.so")
    assert built.name.startswith("gather-")


def test_switched_off():
    with native.off():
        assert native.library("gather") is None and "switched off" in native.problem("gather")
        assert native.missing().keys() == set(native.families())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc keeps memory if told so")
def test_memory_that_is_freed_is_kept():
    code = (
        "import psutil, torch\n"
        "from pocketrec.kernels import native\n"
        "assert native.keep_memory()\n"
        "torch.ones(1 << 26)\n"  # 268 MB, freed at once
        "print(psutil.Process().memory_info().rss > 1 << 28)"
    )
    assert python(code).stdout.strip() == "True"


@pytest.mark.skipif(bool(native.problem("gather")), reason=native.problem("gather"))
@pytest.mark.parametrize("method", ["full", "hashing", "robe"])
def test_compiled_and_exported(method, tmp_path):
    cardinalities, ids = [50, 900], torch.randint(0, 50, (7, 2))
    module = embeddings.build(method, cardinalities=cardinalities, dim=8, ratio=1 if method == "full" else 10, seed=0)
    served = module.deploy()
    assert torch.equal(torch.export.export(served, (ids,)).module()(ids), served(ids))
    compiled = torch.compile(served, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(ids), served(ids))


def test_inference_calls_directly_unless_someone_watches():
    table, index = torch.randn(9, 4), torch.tensor([3, 8])
    with torch.inference_mode():
        assert torch.equal(gather.rows(table, index), table[index])
        with FakeTensorMode() as fake:
            seen = gather.rows(fake.from_tensor(table), fake.from_tensor(index))
        assert isinstance(seen, FakeTensor) and seen.shape == (2, 4)
        compiled = torch.compile(gather.rows, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(table, index), table[index])


DONE_OTHERWISE = "not registered and not fewer_threads"  # by torch, or in processes of their own


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_sanitizers_find_nothing(tmp_path):
    """The same tests with a build that watches addresses and undefined behaviour."""
    # the C++ library too, or the sanitizer would not find what throws exceptions
    names = ("libasan.so", "libstdc++.so")
    found = [subprocess.run(["g++", f"-print-file-name={n}"], capture_output=True, text=True).stdout for n in names]
    libraries = [line.strip() for line in found]
    if not all(Path(library).is_absolute() for library in libraries):
        pytest.skip("g++ or its address sanitizer is not there")
    environment = {
        "POCKETREC_CXXFLAGS": "-O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -g",
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "XDG_CACHE_HOME": str(tmp_path),
    }
    tests = [
        str(file) for file in sorted(HERE.glob("test_*.py")) if file.name not in ("test_native.py", "test_triton.py")
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", DONE_OTHERWISE, *tests]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "skipped" not in done.stdout.splitlines()[-1]
