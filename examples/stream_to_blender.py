"""Move an avatar in Blender: python examples/stream_to_blender.py CLIP_OR_CAMERA [HOST:PORT]

Poses are sent by OSC in the VMC protocol (Virtual Motion Capture), for add-ons of Blender, Unity programs and VSeeFace. Let the
add-on listen on port 39539. This needs `pip install '.[osc]'`; docs/view.md has the axes.
"""

from __future__ import annotations

import sys

import convnextpose
from pipeline.views.base import Endpoint
from pipeline.views.table import ViewConfig


def main(source: str, receiver: str = "127.0.0.1:39539") -> None:
    """Play the source as a camera, and send the newest pose of the person seen longest."""
    view = ViewConfig("osc-vmc", Endpoint.parse(receiver))
    with convnextpose.open_pipeline(convnextpose.RunConfig(source, live=True, views=(view,))) as pipeline:
        pipeline.run()  # the view has its own thread and never slows this down
        print(pipeline.streams[0].ledger.counts())


if __name__ == "__main__":
    main(*sys.argv[1:])
