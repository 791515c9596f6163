"""Strict YAML, and files that are whole or absent."""

import pytest

from pocketrec.errors import UserError, suggest
from pocketrec.files import atomic, read_yaml, source_hash, write_json


def yaml(tmp_path, text):
    path = tmp_path / "some.yaml"
    path.write_text(text)
    return read_yaml(path)


def test_yaml_numbers_and_words(tmp_path):
    found = yaml(tmp_path, "lr: 1e-3\nanswer: no\nrows: 1_000\n")
    assert found["lr"] == 0.001 and found["answer"] == "no" and found["rows"] == 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r"some\.yaml:3: .*duplicate key"),
        ("a: [1, 2\n", r"some\.yaml:\d+: not valid YAML"),
        ("", "expected a mapping"),
        ("- a\n", "expected a mapping"),
        ("a: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
    ids=["duplicate", "unclosed", "empty", "list", "python-object"],
)
def test_bad_yaml_is_one_sentence(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as error:
        yaml(tmp_path, text)
    assert "\n" not in str(error.value)


def test_missing_yaml(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_yaml(tmp_path / "absent.yaml")


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="nan"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(RuntimeError), atomic(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_text() == '{\n "a": 1\n}\n' and list(tmp_path.iterdir()) == [path]


def test_suggestions():
    assert suggest("rope", ["robe", "full"]) == "; did you mean 'robe'?"
    assert suggest("zzz", ["robe", "full"]) == "; known: full, robe"


def test_what_is_said_of_code_is_not_hashed(tmp_path):
    def hashed(text, name="a.py"):
        (tmp_path / name).write_text(text)
        return source_hash(tmp_path / name)

    code = 'def f(x):\n    """Double."""\n    return 2 * x  # twice\n'
    assert hashed(code) == hashed('"""A module."""\n\ndef f(x):\n\n    return 2*x\n')
    assert hashed(code) != hashed(code.replace("2", "3"))
    assert hashed("int a; // one", "a.cpp") != hashed("int a; // two", "a.cpp")
