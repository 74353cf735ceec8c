"""A latency table of a device: what the parts of a model cost there, so that pruning can aim at milliseconds of that device.

python -m distill.latency programs CHECKPOINT DIR --recipe int8       # here: programs of shapes that pruning could leave
python -m edge bench DIR/program* --threads 1 --json > times.json            # on the device, on which edge/device is enough
python -m distill.latency table DIR times.json phone.json             # here
python -m distill.prune CHECKPOINT OUT --target latency_ms=5 --latency_table phone.json --dataset my_photos
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works without installing the package

from distill.launch import launch
from distill.pruning.flags import add_recipe, add_removal, not_negative
from distill.pruning.targets import parse_scopes, read_flag
from edge.device.commands import positive

NUM_PROGRAMS = 40


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns 0 on success, otherwise as `launch`."""
    options = vars(make_parser().parse_args(argv))

    def work() -> None:
        from distill.pruning.table_files import make_table, write_programs

        if options.pop("command") == "table":
            table = make_table(**options)
            print("\n".join(f"{price.part:<40} {price.ms_per_unit:.5f} ms" for price in table.prices))
            print(f"{table.described()}\n-> {options['output_file']}")
            return
        scopes = read_flag("scopes", parse_scopes, options.pop("scopes"))
        folders = write_programs(**options, scopes=scopes)
        print(f"-> {len(folders)} programs in {options['output_dir']}")
        print(f"On the device: python -m edge bench {options['output_dir']}/program* --threads 1 --json > times.json")

    return launch(work, "nothing was written; start again")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m distill.latency", description="A latency table of a device.")
    commands = parser.add_subparsers(required=True, dest="command")
    programs = commands.add_parser(
        "programs", help="write programs of shapes that pruning could make of a checkpoint", allow_abbrev=False
    )
    programs.add_argument("checkpoint", help="folder or Hub id of a classifier, or the name of a preset")
    programs.add_argument("output_dir", type=Path, help="folder to write; it must be empty or not exist yet")
    add_removal(programs)
    add_recipe(programs)
    programs.add_argument("--num_programs", type=positive, default=NUM_PROGRAMS)
    programs.add_argument("--seed", type=not_negative, default=0)
    table = commands.add_parser("table", help="make the table of the times of these programs", allow_abbrev=False)
    table.add_argument("programs_dir", type=Path, help="folder of the programs")
    table.add_argument("times", type=Path, help="what `edge bench --json` printed on the device")
    table.add_argument("output_file", type=Path, help="table to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
