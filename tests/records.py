"""What do small comparisons on the command line read? Records of words that were drawn, private and public."""

from pathlib import Path

from hushtune_common.seeding import SeedTree

WORDS = ("tea", "boat", "lamp", "grass", "stone", "cloud", "seven", "north")


def write_records(folder: Path) -> None:
    draw = SeedTree(3).generator()
    for name in ("private", "public"):
        records = [" ".join(WORDS[int(k)] for k in draw.integers(0, len(WORDS), 6)) for _ in range(60)]
        (folder / f"{name}.txt").write_text("\n".join(records), encoding="utf-8")
