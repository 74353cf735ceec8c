"""The page of `edge demo` in a real browser: Chromium or Chrome of this system."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import edge.__main__ as cli
from edge.device.runner import Runner
from edge.verbs.checkpoint_model import CheckpointModel

gradio = pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
DONE = "text=with reading the pixels"


@pytest.fixture
def address(artefact, checkpoint, image_folder, monkeypatch):
    """The page of a program beside its checkpoint, with examples."""
    from edge.verbs.demo import launch, make_page

    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    page = make_page([str(artefact), str(checkpoint)], [image_folder / "red" / "0.png", image_folder / "blue" / "0.png"])
    yield launch(page, prevent_thread_lock=True, quiet=True)
    page.close()


@pytest.fixture
def page(address):
    """The open page; whatever it asks other computers for, or complains of, fails the test."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page, outside, errors = browser.new_page(viewport={"width": 1200, "height": 1000}), [], []
        page.on("request", lambda request: outside.append(request.url) if is_outside(request.url) else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.wait_for_selector("text=Swin at work")
        yield page
        assert outside == [] and errors == []
        browser.close()


def is_outside(url: str) -> bool:
    return not re.match(r"(https?|wss?)://(127\.0\.0\.1|localhost)[:/]|data:|blob:", url)


def labels_on(page) -> list[str]:
    """The first class of each model."""
    return [text.strip() for text in page.locator("[data-testid=label-output-value]").all_inner_texts()]


def upload(page, file) -> None:
    """Put a file in the place of the picture, and wait for the answers."""
    if page.get_by_label("Clear").count():
        page.get_by_label("Clear").first.click()
        page.wait_for_selector(DONE, state="detached")
    page.set_input_files("input[type=file]", str(file))
    page.wait_for_selector(DONE)


def test_every_model_answers_for_an_upload(page, artefact, checkpoint, image_folder):
    image = image_folder / "green" / "5.png"
    upload(page, image)
    program, model = Runner(artefact), CheckpointModel(checkpoint)
    assert labels_on(page) == [program.classify(image)[0].label, model.classify(Image.open(image).convert("RGB"))[0].label]
    assert page.locator("text=program, ExecuTorch").count() == 1 and page.locator("text=checkpoint, PyTorch").count() == 1
    assert page.get_by_text("red for, blue against").count() == 1  # of the checkpoint alone
    page.get_by_role("button", name="About this model").first.click()
    page.wait_for_selector("text=Classifier of 3 classes: blue, green, red")


def test_odd_images_and_examples(page, artefact, tmp_path):
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 255, (40, 30, 3), np.uint8))
    colour.convert("CMYK").save(tmp_path / "cmyk.jpg")
    colour.convert("RGBA").save(tmp_path / "transparent.png")
    colour.resize((1, 1)).save(tmp_path / "one.png")
    colour.resize((900, 3)).save(tmp_path / "flat.png")
    for name in ("cmyk.jpg", "transparent.png", "one.png", "flat.png"):
        upload(page, tmp_path / name)
        assert labels_on(page)[0] == Runner(artefact).classify(tmp_path / name)[0].label
    page.locator(".gallery-item").first.click()  # the first example
    expected = Runner(artefact).classify(tmp_path / "photos" / "red" / "0.png")[0].label
    sync_api.expect(page.locator("[data-testid=label-output-value]").first).to_have_text(expected)


def test_a_phone_shows_it_whole_and_keys_reach_it(page, image_folder):
    page.set_viewport_size({"width": 390, "height": 800})
    upload(page, image_folder / "red" / "1.png")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator("text=About this model").nth(1).is_visible()
    reached = set()
    for _ in range(25):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("(e => e.getAttribute('aria-label') || e.innerText || '')(document.activeElement)").strip())
    assert {"Upload file", "Capture from camera", "Paste from clipboard"} <= reached
    assert any(name.startswith("About this model") for name in reached)


def test_a_computer_without_a_camera_is_told(page):
    page.get_by_label("Capture from camera").click()
    page.wait_for_timeout(1000)
    assert page.locator("text=Swin at work").is_visible()
    page.get_by_label("Upload file").click()


def test_what_cannot_be_shown_is_explained(tmp_path, capsys):
    assert cli.main(["demo", str(tmp_path), "--no_browser"]) == 1
    assert "must be a folder with a program (edge.json) or a checkpoint (config.json)" in capsys.readouterr().err


def test_the_page_of_a_space_runs_on_its_own(artefact, image_folder, tmp_path):
    from edge.export.publishing import prepare
    from swin_hf.spaces import make_space, pin

    model = prepare(artefact, "org/name", tmp_path / "model", examples=image_folder / "red")
    space = make_space(model, tmp_path / "space")
    pin(space, "0123abc")
    (space.folder / "org").mkdir()
    model.folder.rename(space.folder / "org" / "name@0123abc")  # in the place of the Hub
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    app = subprocess.Popen([sys.executable, "app.py"], cwd=space.folder, env=environment)
    try:
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
            page = browser.new_page()
            for _ in range(120):
                try:
                    page.goto(f"http://127.0.0.1:{port}")
                    break
                except sync_api.Error:
                    time.sleep(0.5)
            page.wait_for_selector("text=It is sent to the computer that runs this page.")
            upload(page, image_folder / "blue" / "2.png")
            assert labels_on(page) == [Runner(artefact).classify(image_folder / "blue" / "2.png")[0].label]
            assert page.locator(".gallery-item").count() > 0
            browser.close()
    finally:
        app.terminate()
        app.wait(timeout=30)
