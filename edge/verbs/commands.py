"""The commands predict and evaluate, of checkpoints and programs."""

import argparse
import sys
from pathlib import Path

from edge.device.commands import add_command, add_json, positive, print_json
from edge.device.predict import add_predict, predict
from edge.device.printable import printable

MODEL_HELP = "folder of a program or a checkpoint, or its name on the Hub: org/name, org/name@revision"


def add_predict_with_any(commands) -> argparse.ArgumentParser:
    command = add_predict(commands, metavar="MODEL", model_help=MODEL_HELP)
    command.set_defaults(run=run_predict)
    return command


def run_predict(arguments: argparse.Namespace) -> int:
    from edge.verbs.opening import open_model

    return predict(arguments, open_model)


def add_demo(commands) -> argparse.ArgumentParser:
    command = add_command(commands, "demo", run_demo, "show models at work on a local page, on your photographs or a camera's")
    command.add_argument("models", nargs="+", metavar="MODEL", help=f"{MODEL_HELP}; several are shown side by side")
    command.add_argument("--examples", type=Path, metavar="FOLDER", help="images to try (default: the samples of its run)")
    command.add_argument("--port", type=positive, help="of the page (default: the first free one from 7860)")
    command.add_argument("--no_browser", action="store_true", help="do not open the page in a browser")
    return command


def run_demo(arguments: argparse.Namespace) -> int:
    from edge.verbs.demo import serve

    serve(arguments.models, arguments.examples, arguments.port, not arguments.no_browser)
    return 0


def add_evaluate(commands) -> argparse.ArgumentParser:
    command = add_command(
        commands, "evaluate", run_evaluate, "measure accuracy on labelled images, class by class", aliases=["val"]
    )
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    command.add_argument(
        "--dataset",
        type=Path,
        metavar="FOLDER",
        help="images in class folders or a saved data set, of a segmenter images beside masks; of splits, the test split "
        "(default: that of the run that it lies in)",
    )
    command.add_argument("--mistakes", type=Path, metavar="FOLDER", help="a new folder for the images that it gets wrong")
    add_json(command)
    return command


def run_evaluate(arguments: argparse.Namespace) -> int:
    from edge.export.own_images import images_to_judge_on, warning_of_training_images
    from edge.verbs.evaluate import describe, evaluate
    from edge.verbs.opening import local_folder, open_model

    folder = local_folder(arguments.model)
    model = open_model(str(folder))
    dataset = images_to_judge_on(folder, arguments.dataset)
    figures = evaluate(model, dataset, arguments.mistakes)
    if warning := warning_of_training_images(folder, dataset, figures["num_images"]):
        print(printable(warning), file=sys.stderr)
    if arguments.json:
        print_json(figures)
    else:
        print(describe(figures))
    return 0
