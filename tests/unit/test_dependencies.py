"""Optional packages: found, absent, and broken inside."""

import json
import sys

import pytest

from forerun.core.dependencies import import_optional
from forerun.core.errors import MissingDependencyError


def test_an_installed_package_is_returned():
    assert import_optional("json", extra="plot", purpose="this test") is json


def test_an_absent_package_names_the_command_that_installs_it():
    with pytest.raises(
        MissingDependencyError, match=r"^the plot needs the package absent_one.*pip install 'forerun\[plot\]'$"
    ):
        import_optional("absent_one.part", extra="plot", purpose="the plot")


def test_a_failure_inside_the_package_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "broken_inside.py").write_text("import absent_two\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="absent_two") as caught:
        import_optional("broken_inside", extra="plot", purpose="the plot")
    assert not isinstance(caught.value, MissingDependencyError)
    assert "broken_inside" not in sys.modules
