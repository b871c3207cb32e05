"""Files of results: one file of code for each format, and `table.py`, which lists them (`--formats`).

May import the pipeline's types and timeline, av and cv2; it uses no threads, sources or networks.
"""
