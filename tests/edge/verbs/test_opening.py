"""Models by their folder or by their name on the Hub, which here is a server of our own."""

import json
import shutil

import pytest
from hub_repositories import User
from hub_server import HubServer
from huggingface_hub import HfApi

import edge.__main__ as cli
from edge.export.publishing import prepare

ALICE = "hf_alice"


@pytest.fixture
def hub(artefact, checkpoint, tmp_path, monkeypatch):
    with HubServer({ALICE: User("alice", ("org",))}) as server:
        changes = {
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "ENDPOINT": server.url,
            "HF_HUB_CACHE": tmp_path / "home",
        }
        changes["HUGGINGFACE_CO_URL_TEMPLATE"] = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in changes.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        api = HfApi(token=ALICE)
        prepare(artefact, "org/phone", tmp_path / "prepared")
        for name, folder in (("org/phone", tmp_path / "prepared"), ("org/model", checkpoint)):
            api.create_repo(name)
            api.upload_folder(repo_id=name, folder_path=folder)
        yield server


def test_programs_and_checkpoints_of_the_hub_are_run_by_their_name(hub, image_folder, capsys):
    image, found = str(image_folder / "red" / "0.png"), {}
    for name in ("org/phone", "org/model"):
        assert cli.main(["predict", name, image, "--json"]) == 0
        said = capsys.readouterr()
        (row,) = json.loads(said.out)
        found[name] = row["predictions"][0]
        assert f"{name}@{hub.repositories['models', name].branches['main']}\n" in said.err
    assert found["org/phone"]["label"] == found["org/model"]["label"]
    assert found["org/phone"]["probability"] == pytest.approx(found["org/model"]["probability"], abs=1e-4)
    assert cli.main(["predict", f"org/phone@{hub.repositories['models', 'org/phone'].branches['main']}", image]) == 0
    assert cli.main(["self-test", "org/phone"]) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", "org/model", "--dataset", str(image_folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_labelled"] == 48
    for name in ("org/none", "org/phone@" + "0" * 40):
        assert cli.main(["predict", name, image]) == 1
        assert f"error: {name} is no folder here, and the Hub does not give it: " in capsys.readouterr().err


def test_a_program_that_was_changed_on_the_hub_is_not_run(hub, artefact, image_folder, capsys):
    content = bytearray((artefact / "model.pte").read_bytes())
    content[-1] ^= 1
    HfApi(token=ALICE).upload_file(path_or_fileobj=bytes(content), path_in_repo="model.pte", repo_id="org/phone")
    assert cli.main(["predict", "org/phone", str(image_folder / "red" / "0.png")]) == 1
    told = capsys.readouterr().err
    assert "model.pte" in told and "sha256" in told


def test_what_is_no_model_is_explained(tmp_path, image_folder, capsys):
    image = str(image_folder / "red" / "0.png")
    for name, got in ((str(tmp_path), "a folder without them"), ("model", "neither"), ("a/b/c", "neither")):
        assert cli.main(["predict", name, image]) == 1
        assert f"or the name of a repository of the Hub with one, like org/name; got {got}" in capsys.readouterr().err


def test_an_export_is_exported_again_from_its_checkpoint(artefact, checkpoint, image_folder, tmp_path, capsys):
    command = [
        "export",
        str(artefact),
        "--output_dir",
        str(tmp_path / "again"),
        "--recipe",
        "fp32",
        "--dataset",
        str(image_folder),
    ]
    assert cli.main(command) == 0
    assert (tmp_path / "again" / "model.pte").read_bytes() == (artefact / "model.pte").read_bytes()
    shutil.rmtree(checkpoint)
    capsys.readouterr()
    assert cli.main(command) == 1
    assert (
        f"error: {artefact} is an export of ../checkpoint, which is not beside it; give the checkpoint"
        in capsys.readouterr().err
    )


def test_a_checkpoint_is_timed_alone(checkpoint, artefact, capsys):
    assert cli.main(["bench", str(checkpoint), "--threads", "1", "--repeats", "7", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert [(row["threads"], row["repeats"]) for row in figures["latency"]] == [(1, 7)]
    assert figures["parameters"] > 1000 and figures["macs"] > 10000
    assert cli.main(["bench", str(checkpoint), "--threads", "1", "--repeats", "2"]) == 0
    assert "PyTorch eager; " in capsys.readouterr().out
    for more in ([str(artefact)], ["--compare"], ["--profile"]):
        with pytest.raises(SystemExit):
            cli.main(["bench", str(checkpoint), *more])
        assert "is a checkpoint, which" in capsys.readouterr().err
