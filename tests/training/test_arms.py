"""Names of arms."""

from __future__ import annotations

import pytest

from mdl_physpre.errors import ConfigError
from mdl_physpre.training.arms import Arm, eam_is_needed, parse_arm, parse_arms


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("baseline", (False, False, False, False)),
        ("sam", (True, False, False, False)),
        ("pretrain", (False, True, False, False)),
        ("hybrid", (False, False, True, False)),
        ("replay", (False, True, False, True)),
        ("pretrain+replay", (False, True, False, True)),
        ("sam+pretrain", (True, True, False, False)),
        ("pretrain + sam", (True, True, False, False)),
        ("sam+hybrid", (True, False, True, False)),
        ("pretrain+hybrid+replay+sam", (True, True, True, True)),
    ],
)
def test_names_say_what_an_arm_is_made_of(name, parts):
    arm = parse_arm(name)
    assert (arm.name, arm.parts) == (name, parts)
    assert eam_is_needed([arm]) == (parts[1] or parts[2])
    assert eam_is_needed([arm], "another teacher") == parts[2]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pretrian", "unknown part 'pretrian'; did you mean 'pretrain'?"),
        ("", "unknown part ''"),
        ("sam+", "unknown part ''"),
        ("sam+sam", "'sam' stands there more than once"),
        ("baseline+sam", "baseline is training without any of sam, pretrain, hybrid, replay"),
        ("hybrid+replay", "this arm has no pretraining; write 'pretrain[+]hybrid[+]replay'"),
    ],
)
def test_what_has_no_meaning_is_an_error(name, message):
    with pytest.raises(ConfigError, match=message.replace("?", "[?]")):
        parse_arm(name)


def test_each_arm_once():
    assert parse_arms(["baseline", "replay"])[0] == Arm("baseline")
    for names, message in (
        ([], "at least one"),
        (["sam", "sam"], "'sam' stands there twice"),
        (["replay", "pretrain+replay"], "'pretrain[+]replay' is the same as 'replay'"),
        (["sam+pretrain", "baseline", "pretrain+sam"], "is the same as 'sam[+]pretrain'"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_arms(names)
