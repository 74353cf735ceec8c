"""A latency table of a device: what the parts of a model cost there, so that pruning can aim at milliseconds of that device.

python -m distill.latency programs CHECKPOINT DIR                     # here: programs of shapes that pruning could leave
python -m edge bench DIR/program* --threads 1 --json > times.json     # on the device; `python -m device` does as well
python -m distill.latency table DIR times.json table.json             # here
python -m distill.prune CHECKPOINT OUT --target latency_ms=5 --latency_table table.json --dataset my_photos
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works without installing the package

from distill.launch import launch
from distill.pruning.flags import add_recipe, add_removal, not_negative
from distill.pruning.targets import AUTO, parse_scopes, read_flag
from edge.device.commands import positive

MOST_PROCESSES = 4  # unless more are asked for: of their memory


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns 0 on success, otherwise as `launch`."""
    options = vars(make_parser().parse_args(argv))
    command = options.pop("command")

    def work() -> None:
        from distill.pruning.latency_table import unit_of
        from distill.pruning.table_files import TablePrograms, make_table, write_programs

        if command == "table":
            table = make_table(**options)
            for part, price in table.prices.items():
                print(f"{part:<40} {price:.5f} ms{unit_of(part) and f' for each of {unit_of(part)}'}")
            print(f"{table.described()}\n-> {options['output_file']}")
            return
        scopes = read_flag("scopes", parse_scopes, options.pop("scopes"))
        count = write_programs(TablePrograms(**options, scopes=scopes))
        print(f"-> {count} programs in {options['output_dir']}")
        print(f"On the device: python -m edge bench {options['output_dir']}/program* --threads 1 --json > times.json")

    return launch(work, "nothing was written; start again")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m distill.latency", description="A latency table of a device.")
    commands = parser.add_subparsers(required=True, dest="command")
    programs = commands.add_parser("programs", help="write programs to be timed on the device", allow_abbrev=False)
    programs.add_argument(
        "model",
        help="what will be pruned: folder or Hub id of a classifier, or a preset; or "
        f"{AUTO}: the students that --student {AUTO} chooses from",
    )
    programs.add_argument("output_dir", type=Path, help="folder to write; it must be empty or not exist yet")
    programs.add_argument("--image_size", type=positive, help=f"pixels, of a preset or of {AUTO} (default: 224)")
    add_removal(programs)
    add_recipe(programs)
    programs.add_argument("--num_programs", type=positive, help="default: as many as the table needs, and a quarter more")
    programs.add_argument("--seed", type=not_negative, default=0)
    processes = min(os.cpu_count() or 1, MOST_PROCESSES)
    programs.add_argument("--processes", type=positive, default=processes, help="at a time, of 1.5 GB each")
    table = commands.add_parser("table", help="make the table of the times of these programs", allow_abbrev=False)
    table.add_argument("programs_dir", type=Path, help="folder of the programs")
    table.add_argument("times", type=Path, nargs="+", help="what `bench --json` printed on the device, in one file or more")
    table.add_argument("output_file", type=Path, help="table to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
