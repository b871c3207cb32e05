"""A miniature of Human3.6M in 3DMPPE's layout, with drawn people, and a stand-in model with known errors.

The two halves of each picture have different colours, which encode its number, so that the stand-in can tell from a crop which
picture it is from and whether it was mirrored.
"""

import json

import cv2
import numpy as np

from convnextpose.camera import Intrinsics
from convnextpose.crop import apply_affine, crop_from_image
from convnextpose.skeleton import HUMAN36M
from convnextpose.variants import INPUT_SIZE, Variant
from engines.pose import ModelInfo, Predictions

WIDTH, HEIGHT = 1000, 1002
FOLDER = "s_{:02}_act_{:02}_subact_{:02}_ca_{:02}"


def camera(index):
    """A camera that looks at the origin from 5 m: R, t, f, c."""
    turn = np.radians(90 * index + 20)
    ahead = np.array([-np.cos(turn), -np.sin(turn), -0.1])
    ahead /= np.linalg.norm(ahead)
    right = np.cross(ahead, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(ahead, right), ahead])
    place = -5000 * ahead
    return rotation, -rotation @ place, [1145.0 + index, 1143.0], [512.0, 515.0]


def person(seed):
    """17 joints around the origin in the world, z up, mm."""
    return np.random.default_rng(seed).normal(0, [250, 250, 350], (17, 3))


def build(folder, *, actions=(2, 14), frames=(0, 63, 64), subjects=(9, 11), cameras=(1, 3), old=False):
    """Write the data set; returns the truth of each counted picture, in the order of the files: a list of dictionaries."""
    truths = []
    (folder / "annotations").mkdir(parents=True)
    for subject in subjects:
        images, annotations, worlds, described = [], [], {}, {}
        for action in actions:
            for frame in frames:
                world = person(1000 * subject + 10 * action + frame)
                worlds.setdefault(str(action), {}).setdefault("1", {})[str(frame)] = world.tolist()
                for cam in cameras:
                    rotation, t, f, c = camera(cam)
                    position = (-rotation.T @ t).tolist()
                    described[str(cam)] = {"R": rotation.tolist(), "t": position if old else t.tolist(), "f": f, "c": c}
                    joints = world @ rotation.T + t
                    places = Intrinsics(*f, *c).project(joints)[:, :2]
                    low, high = places.min(0), places.max(0)
                    size = high - low - 1
                    box = [*((low + high) / 2 - size * 0.6), *(size * 1.2)]
                    name = FOLDER.format(subject, action, 1, cam)
                    path = f"{name}/{name}_{frame + 1:06}.jpg"
                    number = 10_000 * subject + len(images)
                    images.append({
                        "id": number, "file_name": path, "width": WIDTH, "height": HEIGHT, "subject": subject,
                        "frame_idx": frame, "action_name": "", "action_idx": action, "subaction_idx": 1, "cam_idx": cam,
                    })  # fmt: skip
                    annotations.append({"id": number, "image_id": number, "bbox": box, "keypoints_vis": [True] * 17})
                    if frame % 64 == 0:
                        thorax = (joints[[11]] + joints[[14]]) / 2
                        whole = np.concatenate([joints, thorax])
                        truths.append({"joints": whole, "camera": Intrinsics(*f, *c), "id": number, "box": box})
                        write_picture(folder / "images" / path, len(truths) - 1, places)
        for what, value in (
            ("data", {"images": images, "annotations": annotations}), ("camera", described), ("joint_3d", worlds),
        ):  # fmt: skip
            (folder / "annotations" / f"Human36M_subject{subject}_{what}.json").write_text(json.dumps(value))
    return truths


def write_picture(path, number, places):
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    middle = round((places[:, 0].min() + places[:, 0].max()) / 2)
    image[:, :middle] = (0, 0, 20 + 10 * number)
    image[:, middle:] = (0, 255, 20 + 10 * number)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path.with_suffix(".png")), image)  # lossless, but with the name from the annotations
    path.with_suffix(".png").rename(path)


class StandIn:
    """A `PosePredictor` that returns the truth with an error, in the form of a variant's network.

    `change` converts true joints [18, 3] in camera space, mm, to predicted ones.
    """

    def __init__(self, truths, frames, change, variant=Variant.XS, joint_set=HUMAN36M):
        self.truths, self.frames, self.change = truths, frames, change
        self.info = ModelInfo("stand-in", variant, joint_set, "0" * 64)
        self.mirrored = 0

    def run(self, crops):
        joints = []
        for crop in crops:
            left, right = crop[128, 64], crop[128, 192]
            mirrored = left[1] > 128
            number = round((int(left[2]) - 20) / 10)
            assert abs(int(left[2]) - int(right[2])) < 3 and (right[1] > 128) != mirrored
            truth, frame = self.truths[number], self.frames[number]
            places = truth["camera"].project(self.change(truth["joints"]))
            places[:, 2] -= truth["joints"][0, 2]
            joint = apply_affine(crop_from_image(frame.region), places)
            if mirrored:  # as a network trained with the authors' heat maps predicts for the mirrored crop
                self.mirrored += 1
                joint = joint[list(HUMAN36M.flip_order)]
                joint[:, 0] = INPUT_SIZE - joint[:, 0] - INPUT_SIZE / self.info.variant.spec.heatmap_size
            joints.append(joint)
        return Predictions(np.array(joints, np.float32), np.ones((len(joints), 18), np.float32))

    def describe(self):
        raise AssertionError("nobody asks")
