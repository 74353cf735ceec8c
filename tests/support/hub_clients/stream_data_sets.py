"""Stream data sets of images, one of Parquet files and one of folders, and load one."""

from datasets import load_dataset
from prelude import attempt, say

for name in ("org/animals", "org/folder"):
    stream = load_dataset(name, split="train", streaming=True)
    rows = list(stream)
    say(f"{name}, streamed", [len(rows), rows[0]["image"].size == (7, 9), sorted(row["label"] for row in rows)])
    say(f"{name}, names", stream.features["label"].names)
say("loaded", len(load_dataset("org/animals", split="train")))
attempt("no such data set", lambda: load_dataset("org/nothing"))
