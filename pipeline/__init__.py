"""Sources, person boxes, tracking, stages, threads, timing, drawing and formats: from frames to poses.

May import numpy, av, cv2, `convnextpose` and `engines`. Imports nothing of `tools`.

    from pathlib import Path
    from pipeline.run import RunConfig, open_pipeline

    with open_pipeline(RunConfig(Path("clip.mp4"))) as poses:
        for frame in poses:
            for pose in frame.poses:
                print(frame.frame.time_s, pose.track_id, pose.joints_mm)
"""
