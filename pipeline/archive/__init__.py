"""Whole archives: every video below some folders becomes poses, once, whatever dies on the way.

    found.py    which files are videos, and the hash of what is in one
    ledger.py   what became of each file: lines of JSON that only the coordinator writes
    worker.py   one job: a file to results in a partial folder; a worker opens its models once
    crew.py     workers as processes of this machine
    on_ray.py   workers as actors of a Ray cluster
    run.py      the coordinator: hands out jobs, puts whole results in place, writes the ledger

It imports numpy-free Python alone at the top, `convnextpose`, `engines` and the rest of `pipeline`; Ray inside `on_ray.py`.
"""
