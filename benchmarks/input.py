"""How fast images of ImageNet's size are read, decoded and augmented, for several numbers of workers.

    python -m benchmarks.input --workers 0,1,2,4

Writes JPEG files of 500×375 pixels, the mean size in ImageNet, cut out of scikit-learn's photographs, into a
temporary folder and takes ResNet-50's training batches from it. Prints a Markdown table: images per second
from the moment the first batches are there, and how many times what training takes that is. Training has to
wait for its input where this is less than 1.
"""

import argparse
import contextlib
import itertools
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from dfpjax.training.data import Dataset
from dfpjax.training.data.folder import read_folder

HEIGHT, WIDTH, QUALITY = 375, 500, 97
FILES = 256


def write_images(folder: Path, count: int) -> float:
    """Random parts of each photograph, one class for each; returns the mean size of a file in bytes."""
    random = np.random.default_rng(0)
    for label, photograph in enumerate(load_sample_images().images):
        for split in ("train", "val"):
            (folder / split / str(label)).mkdir(parents=True)
        for number in range(count // 2):
            top = random.integers(photograph.shape[0] - HEIGHT, endpoint=True)
            left = random.integers(photograph.shape[1] - WIDTH, endpoint=True)
            part = Image.fromarray(photograph[top : top + HEIGHT, left : left + WIDTH])
            part.save(folder / "train" / str(label) / f"{number}.jpg", quality=QUALITY)
        part.save(folder / "val" / str(label) / "0.jpg", quality=QUALITY)
    files = list((folder / "train").rglob("*.jpg"))
    return sum(file.stat().st_size for file in files) / len(files)


def images_per_second(dataset: Dataset, *, batch_size: int, seconds: float) -> tuple[float, float]:
    """Over so many seconds or more, after the seconds that pass until the pipeline is full, also returned."""
    with contextlib.closing(dataset.train_batches(batch_size, seed=0)) as batches:
        began = time.perf_counter()
        # What each worker holds ready was made before the clock starts: it must not count as fast.
        for _ in itertools.islice(batches, 4 * max(dataset.workers, 1)):
            pass
        started = time.perf_counter()
        for number in itertools.count(1):
            next(batches)
            elapsed = time.perf_counter() - started
            if elapsed >= seconds:
                return number * batch_size / elapsed, started - began


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", default="0,1,2,4", help="numbers of worker processes")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10, help="measured for each number of workers")
    parser.add_argument("--needed", type=float, default=10, help="images per second that training takes")
    arguments = parser.parse_args(argv)

    with tempfile.TemporaryDirectory() as folder:
        mean_bytes = write_images(Path(folder), FILES)
        source = read_folder(folder, train_split="train", test_split="val")
        print(
            f"{FILES} files of {WIDTH}×{HEIGHT} pixels, {mean_bytes / 1000:.0f} kB; batches of"
            f" {arguments.batch_size} images of 224×224 pixels; {os.cpu_count()} cores\n"
        )
        print(f"| workers | images/s | times {arguments.needed:g} images/s | start (s) |")
        print("| ---: | ---: | ---: | ---: |")
        for workers in map(int, arguments.workers.split(",")):
            dataset = Dataset(source=source, image_size=224, min_crop_area=0.08, flip=True, workers=workers)
            rate, start = images_per_second(
                dataset, batch_size=arguments.batch_size, seconds=arguments.seconds
            )
            print(f"| {workers} | {rate:.0f} | {rate / arguments.needed:.1f} | {start:.1f} |", flush=True)


if __name__ == "__main__":
    main()
