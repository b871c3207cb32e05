"""Texts: boxes, poses, lists of sources, URIs, arguments of the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import cv2

from pipeline.formats.records import frame_record, header_record, read_poses, to_line
from pipeline.people.given import GivenBoxes
from pipeline.run import read_sources
from pipeline.sources import open_source
from tests.fuzz.base import WHOLE_RUNS, command, picture, run_on, warm
from tests.fuzz.media import videos
from tests.fuzz.mutations import ODD_WORDS, damaged, json_text, odd_lines, odd_words


class Boxes:
    """Files of people's boxes, in each format."""

    def prepare(self) -> str | None:
        rows = [(frame, person, 10 + frame, 12.5, 20, 30) for frame in range(6) for person in (0, 1)]
        self._texts = [
            "frame,x,y,width,height,track_id\n" + "\n".join(f"{f},{x},{y},{w},{h},{p}" for f, p, x, y, w, h in rows),
            "frame,x1,y1,x2,y2\n" + "\n".join(f"{f},{x},{y},{x + w},{y + h}" for f, p, x, y, w, h in rows),
            "\n".join(f"{f + 1},{p},{x},{y},{w},{h},1,-1,-1,-1" for f, p, x, y, w, h in rows),
        ]
        self._poses = PoseFiles()
        self._poses.prepare()
        self._picture = cv2.imencode(".png", picture())[1].tobytes()
        warm()
        return None

    def read(self, random: Random, folder: Path) -> None:
        path = folder / "boxes"
        kind = random.randrange(5)
        path.write_bytes(self._poses.spoilt(random) if kind == 0 else odd_lines(random, random.choice(self._texts), ",\n"))
        if random.random() < WHOLE_RUNS:
            (folder / "p.png").write_bytes(self._picture)
            run_on(folder / "p.png", "--boxes", path)
        GivenBoxes.read(path).check(path, 640, 480)


class PoseFiles:
    """`poses.ndjson` read back."""

    def prepare(self) -> str | None:
        from tests.pipeline.formats.samples import HEADER, posed

        header = replace(HEADER, smooth=True)
        records = [header_record(header), *(frame_record(posed(index), header) for index in range(3))]
        self._lines = [to_line(record).rstrip() for record in records]
        return None

    def spoilt(self, random: Random) -> bytes:
        """The file, spoilt."""
        lines = list(self._lines)
        at = random.randrange(len(lines))
        lines[at] = json_text(random, json.loads(lines[at]))
        data = b"\n".join(lines) + b"\n"
        return damaged(random, data) if random.random() < 0.2 else data

    def read(self, random: Random, folder: Path) -> None:
        path = folder / "poses.ndjson"
        path.write_bytes(self.spoilt(random))
        read_poses(path)


class SourceLists:
    """Lists of sources; sources that are files are opened."""

    def prepare(self) -> str | None:
        self._text = (
            "# cameras\nleft rtsp://user:pass@10.0.0.1:554/a?x=1#transport=tcp 620,620,319.5,239.5\n"
            "right v4l2:///dev/video9?size=640x480\n\nclip test:// 620,620,319.5,239.5\ncsi csi://0?rate=30\n"
        )
        return None

    def read(self, random: Random, folder: Path) -> None:
        path = folder / "sources.txt"
        path.write_bytes(odd_lines(random, self._text, " ,:/?#=@&"))
        for entry in read_sources(path):
            open_source(entry.uri).close()


class Uris:
    """URIs of cameras and files with options: invalid ones are refused when they are opened, before any connection."""

    def prepare(self) -> str | None:
        self._uris = (
            "rtsp://user:p%40ss@10.0.0.1:554/stream?channel=1#transport=tcp&latency=200&flip=180&verify=no",
            "rtsps://[fe80::1]:322/a#ca=/nowhere.pem", "http://host:8080/video.mjpg#flip=90", "https://host/hls.m3u8#verify=yes",
            "udp://239.0.0.1:5000#flip=none", "rtp://0.0.0.0:5004#codec=h264&latency=50", "csi://0?size=1920x1080&rate=30&flip=180",
            "v4l2:///dev/video0?size=1280x720&rate=30&format=mjpeg", "usb:0", "0", "test://?rate=25", "file:///nowhere.mp4",
            "clip.mp4", "/dev/video0",
        )  # fmt: skip
        return None

    def read(self, random: Random, folder: Path) -> None:
        uri = odd_words(random, random.choice(self._uris), ":/?#=@&.[]%")
        source = open_source(uri, live=random.random() < 0.2, loop=random.random() < 0.1)
        source.close()


class Arguments:
    """Arguments of the command line."""

    def prepare(self) -> str | None:
        warm()
        self._picture = cv2.imencode(".png", picture())[1].tobytes()
        self._video = videos()["libx264.mp4"]
        self._values = (
            *ODD_WORDS, "p.png", "v.mp4", "there", "missing", "v.mp4", "junk", "1", "2", "0.5", "620,620,32,24", "mp4",
            "180", "mp4,mp4", "ndjson,npz", "openvino", "torch", "tensorrt", "onnxruntime", "int8", "fp32", "fp16", "skip",
            "stop", "XS", "random", "127.0.0.1:0", "junk.onnx", "junk.engine", "junk.npz", "out.npz", "10s", "rtx40", "1,1,8",
        )  # fmt: skip
        self._options = {
            "run": "--out --sources --formats --model --runtime --precision --boxes --camera --trace --overwrite --min-score "
            "--max-people --keep-lost --smooth --threads --stream --on-damage --view --tcp --osc --osc-style --live --loop "
            "--flip --size --rate --pixel-format --transport --latency --segment --weights --nonsense",
            "verify": "--variant --json",
            "export": "--out --overwrite",
            "calibrate": "--out --count --model --overwrite",
            "build": "--out --all --precision --target --calibration --batch --workspace --version-compatible --dla-core "
            "--hardware-compatible --library --via --overwrite",
            "engine": "inspect --layers",
            "bench-engine": "--batches --seconds --json",
            "cameras": "--json",
            "": "--verbose --help",
        }
        return None

    def read(self, random: Random, folder: Path) -> None:
        for name, data in {"p.png": self._picture, "v.mp4": self._video}.items():
            (folder / name).write_bytes(data)
        for name in ("junk", "junk.onnx", "junk.engine", "junk.engine.json", "junk.npz"):
            (folder / name).write_bytes(random.randbytes(300))
        (folder / "there").mkdir()
        words = [name for name in self._options if name] + ["run"] * 6
        name = random.choice(words) if random.random() < 0.97 else random.choice(ODD_WORDS)
        arguments = [name]
        flags = self._options.get(name, "").split()
        sources = ("p.png", "v.mp4", "there", "missing", "junk", "", "/dev/null", "/dev/zero", "-")
        for _ in range(random.randrange(3)):
            arguments.append(random.choice(sources))
        for _ in range(random.randrange(5)):
            flag = random.choice(flags) if flags else "--help"
            arguments.append(flag)
            if random.random() < 0.8:
                arguments.append(self._value(random))
        if random.random() < 0.5 and "--out" in flags:
            arguments += ["--out", "results.npz" if name == "calibrate" else "results"]
        if name == "run":
            arguments += ["--runtime", "onnxruntime", "--threads", "1", "--seconds", "0.2"]
        random.shuffle(arguments) if random.random() < 0.05 else None
        command(*arguments)

    def _value(self, random: Random) -> str:
        return random.choice(self._values).replace("\0", "")
