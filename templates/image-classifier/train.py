"""Train the digit classifier.

    python prepare.py --out data
    python train.py --train data/train --validation data/validation --model-dir out --epochs 5

On SageMaker the same script runs unchanged: the SM_* variables of the training container are the defaults below, and
each hyperparameter arrives as an option. It prints one line per epoch, which the job's metric definitions read:

    epoch=3 train:loss=0.1234 validation:loss=0.0987 validation:accuracy=0.9812

SIGTERM (StopTrainingJob, a spot interruption) ends it after the running step, with the model and a checkpoint saved.
Started again with the same checkpoint folder it goes on from that step, and ends with the weights of an unbroken run.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from model import CLASSES, IMAGE_SIZE, DigitClassifier
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy, pad

# --- What to do -------------------------------------------------------------------------------------------------------


def whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def existing_folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text!r}. prepare.py writes the data")
    return Path(text)


env = os.environ
# SageMaker syncs this folder with S3 when the job has a CheckpointConfig, and only then creates it.
checkpoints = env.get("SM_CHECKPOINT_DIR") or ("/opt/ml/checkpoints" if Path("/opt/ml/checkpoints").is_dir() else None)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--train", type=existing_folder, default=env.get("SM_CHANNEL_TRAIN", "data/train"))
parser.add_argument("--validation", type=existing_folder, default=env.get("SM_CHANNEL_VALIDATION", "data/validation"))
parser.add_argument("--model-dir", type=Path, default=env.get("SM_MODEL_DIR", "out"), help="gets model.safetensors")
parser.add_argument("--checkpoint-dir", type=Path, default=checkpoints, help="none: start afresh, keep no checkpoint")
# Hyperparameters are keys of a dict in Python, so both spellings are taken.
parser.add_argument("--epochs", type=whole, default=5)
parser.add_argument("--batch-size", "--batch_size", type=whole, default=32, help="images per step")
parser.add_argument("--learning-rate", "--learning_rate", type=positive, default=0.01, help="its peak")
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

# So small a model is fastest on one thread, and one thread gives the same weights on every machine of a kind.
torch.set_num_threads(1)
torch.manual_seed(args.seed)
device = "cuda" if torch.cuda.is_available() else "cpu"

# --- Data, all in memory ----------------------------------------------------------------------------------------------


def load(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = np.load(folder / "images.npy"), np.load(folder / "labels.npy")
    if images.dtype != np.uint8 or images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE):
        sys.exit(f"{folder}/images.npy: uint8 [N, 8, 8] expected, {images.dtype} {list(images.shape)} found")
    if labels.shape != images.shape[:1] or not len(labels) or labels.min() < 0 or labels.max() >= CLASSES:
        sys.exit(f"{folder}/labels.npy: one label of 0 to 9 for each of the {len(images)} images expected")
    return torch.from_numpy(images).to(device), torch.from_numpy(labels).long().to(device)


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image moved by up to one pixel, down and across: a digit stays itself, and 1,077 images become many."""
    down, across = torch.randint(0, 3, (2, len(images), 1), generator=generator).to(device)
    pixels = torch.arange(IMAGE_SIZE, device=device)
    rows, columns = (down + pixels)[:, :, None], (across + pixels)[:, None, :]
    return pad(images, (1, 1, 1, 1))[torch.arange(len(images), device=device)[:, None, None], rows, columns]


images, labels = load(args.train)
validation_images, validation_labels = load(args.validation)

# --- Model, optimiser, schedule ---------------------------------------------------------------------------------------

model = DigitClassifier().to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.01)
steps_per_epoch = math.ceil(len(images) / args.batch_size)
total_steps = args.epochs * steps_per_epoch


def learning_rate(step: int) -> float:
    """A linear warm-up over the first tenth, then a half cosine down to zero."""
    warm_up = max(1, total_steps // 10)
    if step < warm_up:
        return float(args.learning_rate * (step + 1) / warm_up)
    return float(args.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, total_steps - warm_up))))


# --- Resume -----------------------------------------------------------------------------------------------------------

step = 0
checkpoint = args.checkpoint_dir / "checkpoint.pt" if args.checkpoint_dir else None
if checkpoint and checkpoint.exists():
    state = torch.load(checkpoint, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    step = state["step"]
    print(f"Resumed from step {step} of {total_steps}", flush=True)


def save_checkpoint() -> None:
    if checkpoint:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        part = checkpoint.with_suffix(".part")
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, part)
        part.replace(checkpoint)  # a kill in the middle leaves the previous one whole


# --- Train ------------------------------------------------------------------------------------------------------------

stopping = False


def stop(signum: int, frame: object) -> None:
    global stopping
    stopping = True


signal.signal(signal.SIGTERM, stop)


@torch.no_grad()
def validate() -> tuple[float, float]:
    model.eval()
    logits = model(validation_images)
    model.train()
    loss = cross_entropy(logits, validation_labels)
    return loss.item(), (logits.argmax(dim=1) == validation_labels).float().mean().item()


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(args.seed * 1_000_003 + number)


losses: list[float] = []
model.train()
while step < total_steps and not stopping:
    epoch, batch = divmod(step, steps_per_epoch)
    # Order and shifts depend on the seed and the step alone, so that a resumed run sees what an unbroken one would.
    order = torch.randperm(len(images), generator=seeded(epoch))
    rows = order[batch * args.batch_size : (batch + 1) * args.batch_size].to(device)

    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step)
    loss = cross_entropy(model(shifted(images[rows], seeded(total_steps + step))), labels[rows])
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    losses.append(loss.item())
    step += 1

    if step % steps_per_epoch == 0:
        validation_loss, accuracy = validate()
        print(
            f"epoch={epoch + 1} train:loss={sum(losses) / len(losses):.4f} "
            f"validation:loss={validation_loss:.4f} validation:accuracy={accuracy:.4f}",
            flush=True,
        )
        losses.clear()
        save_checkpoint()

# --- Save -------------------------------------------------------------------------------------------------------------

if stopping:
    save_checkpoint()
    print(f"Stopped by SIGTERM after step {step} of {total_steps}; saved", flush=True)
args.model_dir.mkdir(parents=True, exist_ok=True)
save_file({name: tensor.cpu() for name, tensor in model.state_dict().items()}, args.model_dir / "model.safetensors")
