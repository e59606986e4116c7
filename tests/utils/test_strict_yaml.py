"""YAML whose keys stand once: duplicates and tabs are told with their lines, anchors and merges work."""

from __future__ import annotations

import pytest
import yaml

from mdl_physpre.errors import ConfigError
from mdl_physpre.utils.strict_yaml import load_yaml, told
from mdl_physpre.workflow.config.file import load_config


def test_a_key_that_stands_twice_is_told_with_both_lines(tmp_path):
    path = tmp_path / "c.yml"
    path.write_text("model:\n  name: CGCNN\n  cutoff: 5\n  name: M3GNet\n")
    with pytest.raises(ConfigError, match=r"c\.yml: the key 'name' stands twice, in lines 2 and 4"):
        load_config(path)


def test_the_same_key_in_two_sections_is_no_duplicate():
    assert load_yaml("a: {x: 1}\nb: {x: 2}\n") == {"a": {"x": 1}, "b": {"x": 2}}


def test_anchors_and_merges_work_and_may_be_overridden():
    text = "a: &all {p: 1, q: 2}\nb:\n  <<: *all\n  q: 3\n"
    assert load_yaml(text) == {"a": {"p": 1, "q": 2}, "b": {"p": 1, "q": 3}}


def test_a_tab_is_told_as_one():
    with pytest.raises(yaml.YAMLError) as caught:
        load_yaml("task:\n\tseed: 1\n")
    assert told(caught.value) == "line 2, column 1: a tab; YAML wants spaces before keys"


def test_matdeeplearn_s_bare_keys_may_repeat():
    assert load_yaml("?\n?\na: 1\n") == {None: None, "a": 1}
