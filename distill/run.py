"""From labelled images to a small Swin in a .pte, with a report of what each step cost.

python distill/run.py                                   # the demo: handwritten digits
python distill/run.py --dataset my_photos               # one folder of images per class
python distill/run.py --recipe my.yaml --stages edge,report
"""

import signal
import sys

from edge.quiet import quieten

# What `main` needs is imported after `quieten`, which silences messages that PyTorch's packages write on import.


def main() -> int:
    """Run the stages; 0 when all is done, 1 after an error that was explained on stderr, 143 after SIGTERM."""
    quieten()
    from filelock import Timeout

    from distill.pipeline.pipeline import EXPLAINED_ERRORS, Pipeline, quieten_libraries
    from distill.pipeline.settings import parse_settings
    from distill.training.trainer import TrainingStopped

    quieten_libraries()
    try:
        settings = parse_settings()
        pipeline = Pipeline(settings)
        pipeline.check()
        pipeline.run()
    except Timeout:
        print(f"error: another run is at work in {settings.run_dir}; wait for it or give another --name", file=sys.stderr)
        return 1
    except TrainingStopped as stop:
        print(f"\n{stop}; start again to go on from there", file=sys.stderr)
        return 128 + signal.SIGTERM
    except EXPLAINED_ERRORS as error:
        print(f"\nerror: {error}", file=sys.stderr)  # below a progress bar that was cut off
        return 1
    print(pipeline.closing_words())
    return 0


if __name__ == "__main__":
    sys.exit(main())
