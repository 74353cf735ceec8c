"""The command lines: flags as they are spelled, and errors that are explained."""

import pytest

import edge.__main__ as cli
from edge.device.__main__ import main as device_main


@pytest.mark.parametrize("main", [cli.main, device_main], ids=["edge", "device"])
@pytest.mark.parametrize(("flag", "near"), [("--top-k", "--top_k"), ("--top", "--top_k"), ("--jsn", "--json")])
def test_unknown_flags_suggest_near_ones(main, flag, near, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["predict", "DIR", "photo.jpg", flag])
    assert stop.value.code == 2
    assert f"predict: error: unrecognized arguments: {flag} (did you mean {near}?)" in capsys.readouterr().err


@pytest.mark.parametrize(("main", "command"), [(cli.main, ["bench"]), (device_main, ["predict"])], ids=["edge", "device"])
def test_what_a_user_can_put_right_is_explained_in_a_line(main, command, tmp_path, capsys):
    assert main([*command, str(tmp_path), *(["photo.jpg"] if command == ["predict"] else [])]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path} has no edge.json; give a folder written by `python -m edge export`\n"


def test_other_errors_are_not_hidden(artefact, image_folder, monkeypatch):
    def broken(*_):
        raise ValueError("a mistake in the program")

    monkeypatch.setattr("edge.device.runner.Runner.classify", broken)
    with pytest.raises(ValueError, match="a mistake in the program"):
        cli.main(["run", str(artefact), str(image_folder / "red" / "0.png")])


@pytest.mark.parametrize("command", ["export", "sensitivity"])
def test_images_are_always_given(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "CHECKPOINT"])
    assert "--dataset" in capsys.readouterr().err


def test_no_flag_has_a_hyphen():
    commands = next(action for action in cli.make_parser()._actions if action.choices)
    flags = [flag for parser in commands.choices.values() for action in parser._actions for flag in action.option_strings]
    assert len(flags) > 30
    assert not [flag for flag in flags if "-" in flag.lstrip("-")]
