"""Live views and outputs: one file of code for each, and `table.py`, which lists them.

A view sees the newest posed frame of each source, in a thread of its own, and never holds the run up. May import the pipeline's
types, formats, status and board; websockets and python-osc are imported only where such a view is opened.

    base.py      what every view is, and where it stands
    web.py       the page, its socket, /poses, /status and /metrics on one port (`--view`); who may see it is in guard.py
    messages.py  what goes to the page, and the lines of /poses and TCP
    metrics.py   Prometheus' text form of the status
    lines.py     lines of JSON over TCP (`--tcp`)
    osc.py       OSC bundles for avatars and instruments (`--osc`)
    page/        the page: HTML, CSS and ES modules, served as they are
"""
