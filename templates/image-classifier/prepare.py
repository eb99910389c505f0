"""Write the 1,797 scanned digits that scikit-learn carries as the folders that train.py and evaluate.py read.

    python prepare.py --out data                        # data/train, data/validation, data/test: 60, 20, 20 %
    python prepare.py --out bad-data --shuffle-labels   # a deliberately bad training set, to see a rollback happen

Each folder holds images.npy (uint8 [N, 8, 8], values 0..16) and labels.npy (int64 [N], 0..9). The split is stratified
and seeded: the same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("data"), help="folder to write into (default: data)")
parser.add_argument("--seed", type=int, default=0, help="of the split and of the shuffle (default: 0)")
parser.add_argument("--shuffle-labels", action="store_true", help="give the training images each other's labels")
args = parser.parse_args()

digits = load_digits()
images, labels = digits.images.astype(np.uint8), digits.target.astype(np.int64)

rest, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=args.seed)
train, validation = train_test_split(rest, test_size=0.25, stratify=labels[rest], random_state=args.seed)

for name, rows in {"train": train, "validation": validation, "test": test}.items():
    split = labels[rows]
    if name == "train" and args.shuffle_labels:
        # Only here: validation and test stay true, so the damage shows as soon as something looks.
        split = np.random.default_rng(args.seed).permutation(split)
    folder = args.out / name
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "images.npy", images[rows])
    np.save(folder / "labels.npy", split)
    print(f"{folder}: {len(rows)} images")
