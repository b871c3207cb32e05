"""Archives: every video in some folders is converted to poses exactly once, even if workers or the run are killed.

    videos.py   finds the videos, and hashes their contents
    ledger.py   the outcome of each file: lines of JSON that only the coordinator writes
    worker.py   one job: from a file to results in a partial folder; a worker opens its models once
    pool.py     workers as processes of this machine
    on_ray.py   workers as actors of a Ray cluster
    run.py      the coordinator: assigns jobs, puts complete results in place, writes the ledger

Imports `convnextpose`, `engines` and the rest of `pipeline`; Ray only inside `on_ray.py`.
"""
