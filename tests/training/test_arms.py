"""Names of arms, and what their parts declare."""

from __future__ import annotations

import pickle

import pytest

from mdl_physpre.errors import ConfigError
from mdl_physpre.training.arms import PARTS, Arm, Part, parse_arm, parse_arms, parts_by_name
from mdl_physpre.training.settings import TrainingSettings


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("baseline", ""),
        ("sam", "sam"),
        ("pretrain", "pretrain"),
        ("hybrid", "hybrid"),
        ("replay", "pretrain replay"),
        ("pretrain+replay", "pretrain replay"),
        ("sam+pretrain", "sam pretrain"),
        ("pretrain + sam", "sam pretrain"),
        ("sam+hybrid", "sam hybrid"),
        ("zbl", "zbl"),
        ("hybrid+zbl", "zbl hybrid"),
        ("pretrain+zbl", "pretrain zbl"),
        ("pretrain+hybrid+replay+sam", "sam pretrain hybrid replay"),
    ],
)
def test_names_say_what_an_arm_is_made_of(name, parts):
    arm = parse_arm(name)
    assert (arm.name, [part.name for part in arm.parts]) == (name, parts.split())
    assert arm.uses_pretraining_set == arm.has("pretrain") == ("pretrain" in parts)
    assert arm.stages == (("pretrain",) if "pretrain" in parts else ())
    assert arm.uses_eam == ("hybrid" in parts)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pretrian", "unknown part 'pretrian'; did you mean 'pretrain'?"),
        ("", "unknown part ''"),
        ("sam+", "unknown part ''"),
        ("sam+sam", "'sam' stands there more than once"),
        ("baseline+sam", "baseline is training without any of sam, pretrain, zbl, hybrid, replay"),
        ("hybrid+replay", "this arm has no pretraining; write 'pretrain[+]hybrid[+]replay'"),
        ("mdl_physpre.training.parts:Hybird", "mdl_physpre.training.parts has no 'Hybird'; did you mean 'Hybrid'"),
        ("sam+mdl_physpre.training.parts:SAM", "'sam' stands there more than once"),
        ("mdl_physpre.training.losses:MAE", "is not a class derived from mdl_physpre.training.arms.Part"),
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


def test_parts_have_their_settings_and_what_they_make_of_a_training():
    sections = {"sam": {"rho": 0.3, "adaptive": False}, "pretrain": {"lr": 0.1, "loss": "huber"}}
    arm = parse_arm("sam+pretrain", sections)
    optim = TrainingSettings(refit_reference=True)
    first, second = (arm.settings_of(stage, optim) for stage in ("pretrain", "finetune"))
    assert (first.lr, first.loss, first.sam_rho, first.refit_reference) == (0.1, "huber", None, False)
    assert (second.lr, second.loss, second.sam_rho, second.refit_reference) == (optim.lr, "mae", 0.3, True)
    everywhere = parse_arm("sam+pretrain", {"sam": {"pretraining": True}})
    assert everywhere.settings_of("pretrain", optim).sam_rho == 5e-3
    assert pickle.loads(pickle.dumps(arm)) == arm != everywhere
    with pytest.raises(ConfigError, match="rho: found -1"):
        parse_arm("sam", {"sam": {"rho": -1}})
    with pytest.raises(ConfigError, match="roh: unknown key; did you mean 'rho'"):
        parse_arm("sam", {"sam": {"roh": 1}})


def test_every_part_describes_itself():
    parts = parts_by_name(["baseline", "sam+mdl_physpre.training.parts:Hybrid"])
    assert set(parts) >= set(PARTS.built_in)
    for name, part in parts.items():
        assert part.name == name
        assert part.description.endswith(".")
        assert all(field.description for field in part.Settings.model_fields.values())
    assert parse_arm("sam+mdl_physpre.training.parts:Hybrid").name == "sam+hybrid"


class Slow(Part):
    name = "slow"


class SlowMore(Part):
    name = "slowmore"


def test_an_arm_of_import_paths_has_the_names_of_its_parts():
    """Also where one path is the beginning of another."""
    assert parse_arm(f"{__name__}:Slow+{__name__}:SlowMore+sam").name == "slow+slowmore+sam"
