"""Live views and outputs: one file of code for each, and `table.py`, which lists them.

A view sees the newest posed frame of each source, in its own thread, and never blocks the run. May import the pipeline's
types, formats, status and inbox; websockets and python-osc are imported only when such a view is opened.

    base.py      the interface of views, and their addresses
    web.py       the page, its socket, /poses, /status and /metrics on one port (`--view`); access control is in guard.py
    messages.py  the messages for the page, and the lines of /poses and TCP
    metrics.py   the status in Prometheus' text format
    lines.py     lines of JSON over TCP (`--tcp`)
    osc.py       OSC bundles for avatars and instruments (`--osc`)
    page/        the page: HTML, CSS and ES modules, served as they are
"""
