"""Makes the pictures in training/data/pictures from the packages that carry them. Run once; nothing else needs it.

    npm pack @pmndrs/assets@1.7.0 && tar xzf pmndrs-assets-1.7.0.tgz && mv package PACKAGES/pmndrs-assets
    for p in blender-data supertuxkart-data lomiri-wallpapers-16.04; do
        apt-get download $p && dpkg-deb -x ${p}_*.deb PACKAGES/$p; done             # Debian 12
    pip install OpenEXR==3.5.3 scikit-image==0.26.0 scikit-learn==1.9.1
    python -m training.bake_pictures PACKAGES

A file's name shows its kind: `panorama-` is a full panorama (equirectangular), `flat-` a photograph or a surface. Pictures in
`held_out/` are never used in training. LICENSES.md has a line for each. Pictures with people, however small, were found by eye
and left out.
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import re
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

TARGET = Path(__file__).parent / "data" / "pictures"
QUALITY = 88

WORLDS = "blender-data/usr/share/blender/datafiles/studiolights/world"
TEXTURES = "supertuxkart-data/usr/share/games/supertuxkart/data/textures"
TRACKS = "supertuxkart-data/usr/share/games/supertuxkart/data/tracks"
WALLPAPERS = "lomiri-wallpapers-16.04/usr/share/backgrounds"

PANORAMAS = {
    WORLDS: "city courtyard* forest interior night studio sunrise",
    "pmndrs-assets/hdri": "apartment bridge dawn forest* hall lab lobby* night park sky venice* warehouse workshop",
}
"""Names by folder; a star means held out. Pictures with people and second versions of the same place are left out."""

FLATS = {
    TEXTURES: "Tizeta_grey1.png bumpy_surface.png cottage_wall1.jpg cottage_wall2.jpg ceramic.jpg hacienda_ground.jpg "
    "oldWood.png pyramidwall.jpg rockMountain.jpg rockTograss.jpg rock_mountain.jpg* rockwall.jpg sky.jpg woodBridge.jpg "
    "stklib_entranceGuardianMale_a.png woodPost.png* wood_planks1.jpg blackrock.jpg JapanwoodBridge.jpg",
    TRACKS: "ancient_colosseum_labyrinth/3td_BrickOldRound_01.jpg* ancient_colosseum_labyrinth/Ice03_col.jpg "
    "black_forest/forest_floor.jpg black_forest/rock_gray.jpg cave/Ground010_1K_Color.png stk_enterprise/bomber_metal1b.jpg "
    "stk_enterprise/cromwatertower2.jpg stk_enterprise/img_0572.png sandtrack/road.jpg sandtrack/sand.png",
    WALLPAPERS: "aitzgorri_by_Aitzol_Berasategi.jpg friends_by_Aitzol_Berasategi.jpg life_by_Aitzol_Berasategi.jpg "
    "picosdeeuropa_by_Aitzol_Berasategi.jpg* seeding_by_Clements_Engelhardt.jpg Wine_by_Jakkub_Mede.jpg",
    "skimage/data": "brick.png chelsea.png coffee.png grass.png gravel.png* rocket.jpg",
    "sklearn/datasets/images": "china.jpg",
}
"""Files by folder, which is in PACKAGES or in an installed Python package."""

LONGEST = {TEXTURES: 512, TRACKS: 512, WALLPAPERS: 1024}
"""Longest side of the saved picture, px; 640 for all others."""


def displayed(light: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Linear light [H, W, 3] as a camera with a suitable exposure shows it; pixels broken by compression are filled from their
    neighbours."""
    broken = (~np.isfinite(light).all(2) | (light <= 0).any(2)).astype(np.uint8)
    light = np.nan_to_num(light, nan=0.0, posinf=1000.0).clip(0, 1000)
    exposed = light * (0.3 / np.exp(np.log(light.mean(2)[broken == 0].clip(1e-3)).mean()))
    shown = exposed * (1 + exposed / 16) / (1 + exposed) * 1.25  # Reinhard's curve: white at 16 times the middle
    picture = (shown.clip(0, 1) ** (1 / 2.2) * 255).round().astype(np.uint8)
    return cv2.inpaint(picture, cv2.dilate(broken, np.ones((3, 3), np.uint8)), 3, cv2.INPAINT_TELEA)


def panorama(path: Path) -> NDArray[np.uint8]:
    """[H, 2 H, 3] uint8 RGB of an OpenEXR file, or of a script that carries one in base 64."""
    import OpenEXR

    if not path.exists():
        script = path.with_suffix(".exr.js").read_text(encoding="utf-8")
        match = re.search(r"base64,([A-Za-z0-9+/=]+)", script)
        if match is None:
            raise SystemExit(f"expected a picture in base 64 in {path}.js, found none")
        path = TARGET / "panorama.exr"
        path.write_bytes(base64.b64decode(match.group(1)))
    with OpenEXR.File(str(path)) as file:
        channels = file.channels()
        light = channels["RGB"].pixels if "RGB" in channels else np.stack([channels[c].pixels for c in "RGB"], -1)
    if path.parent == TARGET:
        path.unlink()
    return displayed(light[..., :3].astype(np.float32))


def flat(path: Path, longest: int) -> NDArray[np.uint8]:
    """[H, W, 3] uint8 RGB, at most `longest` px wide and high."""
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise SystemExit(f"expected a picture at {path}, found none: unpack the packages as this script's text says")
    scale = min(1.0, longest / max(picture.shape[:2]))
    return cv2.cvtColor(cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)


def folder_of(packages: Path, name: str) -> Path:
    """Path of a folder in the tables: unpacked, or in an installed Python package."""
    if name.startswith("sk"):
        spec = importlib.util.find_spec(name.partition("/")[0])
        if spec is None or spec.origin is None:
            raise SystemExit(f"expected the Python package of {name}, found none: install it as this script's text says")
        return Path(spec.origin).parent / name.partition("/")[2]
    return packages / name


def main() -> None:
    """Read the command line and write every picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, help="folder of unpacked packages")
    packages = parser.parse_args().packages
    (TARGET / "held_out").mkdir(parents=True, exist_ok=True)
    for kind, table in (("panorama", PANORAMAS), ("flat", FLATS)):
        for folder, names in table.items():
            for name in names.split():
                held_out, name = name.endswith("*"), name.rstrip("*")
                source = folder_of(packages, folder) / name
                if kind == "panorama":
                    picture = panorama(source.with_name(f"{name}.exr"))
                    stem = f"{'blender' if folder == WORLDS else 'pmndrs'}-{name}"
                else:
                    picture, stem = flat(source, LONGEST.get(folder, 640)), source.stem
                target = TARGET / ("held_out" if held_out else ".") / f"{kind}-{stem}.jpg"
                bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
                if not cv2.imwrite(str(target), bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY]):
                    raise SystemExit(f"cannot write {target}")
                print(
                    f"{target.relative_to(TARGET)}  {picture.shape[1]}x{picture.shape[0]}  {target.stat().st_size // 1024} KiB"
                )


if __name__ == "__main__":
    main()
