"""Settings: recipes and command line through one parser; whatever is wrong is said before any work."""

import pytest

from distill.pipeline.settings import RECIPE_DIR, parse_settings
from distill.training.command_line import SettingsError


def test_defaults_are_the_demo():
    settings = parse_settings([])
    assert settings.data.dataset == "digits"
    assert settings.run_dir.parts == ("runs", "demo")


@pytest.mark.parametrize("recipe", sorted(RECIPE_DIR.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_parses(recipe):
    parse_settings(["--recipe", recipe.stem])


def test_command_line_wins_over_recipe(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("student_depths: [1, 3]\nstudent_epochs: 7\n")
    settings = parse_settings(["--recipe", str(recipe), "--student_epochs", "9"])
    assert settings.student.student_depths == [1, 3]
    assert settings.student.student_epochs == 9


def test_a_folder_takes_the_photo_recipe_and_its_own_name(tmp_path):
    settings = parse_settings(["--dataset", str(tmp_path / "birds")])
    assert settings.run_name == "birds"
    assert settings.augmentation.horizontal_flip
    assert settings.data.image_size == 224


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--student_epoch", "3"], "unknown setting --student_epoch in the command line; did you mean --student_epochs"),
        (["--student_epochs", "three"], "invalid int value: 'three'"),
        (["--student_epochs", "0"], "--student_epochs must be positive, got 0"),
        (["--teacher_num_heads", "3", "8"], r"--teacher_num_heads must divide 64 channels in stage 0, got \[3, 8\]"),
        (["--prune_mlp", "1.5"], r"--prune_mlp must lie in \[0, 1\), got 1.5"),
        (["--test_share", "0"], "--test_share must lie between 0 and 0.5"),
        (["--stages", "teacher,oven"], "--stages must name stages out of data,teacher"),
        (["--edge_recipe", "int7"], "--edge_recipe must be one of fp32, fp16, int8"),
        (["--recipe", "nowhere"], "--recipe must be a YAML file or a name"),
        (["--name", "../up"], "--name must be a plain folder name"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(SettingsError, match=message):
        parse_settings(arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("studnt_epochs: 3", "unknown setting --studnt_epochs in .*mine.yaml; did you mean --student_epochs"),
        ("student_epochs: many", "invalid int value"),
        ("- a\n- b", "must hold `key: value` lines, got list"),
        ("a: [", "is not valid YAML"),
        ("batch_size: -4", "--batch_size must be positive"),
    ],
)
def test_bad_recipes_are_named(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(SettingsError, match=message):
        parse_settings(["--recipe", str(tmp_path / "mine.yaml")])
