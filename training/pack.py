"""Makes a small copy of the data folder, to transfer to another machine.

    python -m training.pack DATA PACKED [--avatars 48]

PACKED has the files of DATA that training reads, in the same formats: the poses that are used, smaller patches of cloth, some
of the avatars. Only real pictures are stored differently: `people.npz` has the squares that crops are cut from, and the crops
of held-out people; `frames.npz` has the detector's pictures, smaller, without the held-out ones.
"""

from __future__ import annotations

import argparse
import json
import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np

from training.avatars import is_held_out
from training.fabric import PATCH_PX
from training.files import decoded
from training.mocap import COUNT
from training.real import read_people, read_pictures
from training.real_crops import PACKED, CutOuts, HeldOutPeople, write_packed
from training.real_frames import PACKED as PACKED_FRAMES
from training.real_frames import PACKED_KEPT, RealFrames
from training.real_frames import write_packed as write_packed_frames

JPEG_QUALITY = 80

AVATARS = 48


def pack(data: Path, packed: Path, avatars: int = AVATARS) -> dict[str, int]:
    """Write the packed folder; returns the bytes of each of its files and folders.

    Raises:
        SourceError: a file of `data` is missing or not what README.md describes.
        FileExistsError: `packed` already exists.
        OSError: `packed` cannot be written.
    """
    packed.mkdir(parents=True)
    with np.load(data / "mocap_poses.npz", allow_pickle=False) as poses:
        fields = {name: poses[name][:COUNT] for name in ("rotvec", "yaw")}
        fields |= {name: poses[name] for name in ("names", "parents", "offsets")}
    np.savez_compressed(packed / "mocap_poses.npz", **fields)
    _pack_fabric(data / "fabric_patches_cc0.zip", packed / "fabric_patches_cc0.zip")
    _pack_avatars(data / "avatars", packed / "avatars", avatars)
    people, held_out = read_people(data)
    write_packed(packed / PACKED, CutOuts.of(people), HeldOutPeople.of(held_out))
    if (data / "real" / "person_boxes.json").exists():
        write_packed_frames(packed / PACKED_FRAMES, RealFrames.of(read_pictures(data)[0], PACKED_KEPT))
    return {
        path.name: sum(f.stat().st_size for f in (path.rglob("*") if path.is_dir() else [path]) if f.is_file())
        for path in sorted(packed.iterdir())
    }


def _pack_fabric(source: Path, target: Path) -> None:
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as smaller:
        for name in sorted(n for n in archive.namelist() if n.endswith(".jpg")):
            patch = cv2.resize(
                decoded(np.frombuffer(archive.read(name), np.uint8)), (PATCH_PX, PATCH_PX), interpolation=cv2.INTER_AREA
            )
            smaller.writestr(name, cv2.imencode(".jpg", patch, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes())


def _pack_avatars(source: Path, target: Path, count: int) -> None:
    """Some of the training avatars, spread evenly over heads and outfits."""
    entries = json.loads((source / "avatars.json").read_text(encoding="utf-8"))
    trained = [entry for entry in entries if not is_held_out(entry["name"])]
    kept = [trained[k] for k in np.linspace(0, len(trained) - 1, min(count, len(trained))).round().astype(int)]
    (target / "textures").mkdir(parents=True)
    (target / "avatars.json").write_text(json.dumps(kept), encoding="utf-8")
    names = {entry["name"] for entry in kept}
    with np.load(source / "avatars.npz", allow_pickle=False) as data:
        fields = {name: data[name] for name in data.files if "/" not in name or name.split("/")[0] in names}
    np.savez_compressed(target / "avatars.npz", **fields)
    for texture in {texture for entry in kept for texture in entry["textures"].values()}:
        shutil.copyfile(source / "textures" / texture, target / "textures" / texture)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("packed", type=Path, help="the folder to make")
    parser.add_argument("--avatars", type=int, default=AVATARS, help="number of avatars")
    arguments = parser.parse_args()
    if arguments.packed.exists():
        parser.error(f"expected a folder that is not there yet, received {arguments.packed}: name another")
    sizes = pack(arguments.data, arguments.packed, arguments.avatars)
    print(json.dumps({**sizes, "MiB": round(sum(sizes.values()) / 2**20, 1)}))


if __name__ == "__main__":
    main()
