"""Odd input for every door of the package, made from a seed, and what became of it: `make fuzz`.

Each area is a module with two functions.  `make(rng, folder)` writes one input into an empty folder and returns a
`Case`.  `run(case)` gives it to the package: it returns "" if what was accepted is right, else what is wrong with it,
and lets every exception through.
"""

AREAS = {  # and how many of a hundred inputs are theirs
    "images": 14, "sizes": 14, "masks": 7, "classes": 6, "coco": 15, "conversations": 8, "folders": 5, "tables": 8, "npz": 6,
    "shards": 6, "weights": 5, "runs": 3, "options": 3,
}  # fmt: skip
