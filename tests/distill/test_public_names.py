"""What cards and reports call data sets and checkpoints."""

import pytest

from distill.public_names import dataset_type, public_name


@pytest.mark.parametrize(
    ("name", "public", "kind"),
    [
        ("org/flowers", "org/flowers", "org/flowers"),
        ("digits", "digits", "digits"),
        ("photos", "photos", "imagefolder"),  # there is such a folder
        ("clients/acme", "acme", "imagefolder"),
        ("clients/acme/", "acme", "imagefolder"),
        ("./photos", "photos", "imagefolder"),
        ("labels.csv", "labels.csv", "csv"),
        ("../gone/photos", "photos", "imagefolder"),  # was there when the training began
        ("/home/me/secret/photos", "photos", "imagefolder"),
        ("~/secret/photos", "photos", "imagefolder"),
        ("a/b/photos", "photos", "imagefolder"),
    ],
)
def test_a_place_on_this_disk_is_called_by_its_own_name(tmp_path, monkeypatch, name, public, kind):
    (tmp_path / "clients" / "acme").mkdir(parents=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "labels.csv").touch()
    monkeypatch.chdir(tmp_path)
    assert (public_name(name), dataset_type(name)) == (public, kind)
    assert public_name(str(tmp_path / "clients")) == "clients"
