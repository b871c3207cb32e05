"""Explains in one sentence which library cannot be loaded, and which command fixes it."""

from __future__ import annotations

import re

# Linux, macOS and Windows each have their own message for a missing system library.
_MISSING = re.compile(r"(\S+): cannot open shared object file|Library not loaded: (\S+)|DLL load failed[^:]*: (.+)")

SWAP_OPENCV = "pip uninstall -y opencv-python && pip install opencv-python-headless"
"""The command that replaces OpenCV's wheel with the headless one, which needs no desktop libraries (docs/decisions/0003)."""


def missing_library(error: ImportError) -> str | None:
    """The missing system library because of which a module cannot be loaded; None if it failed for another reason."""
    found = _MISSING.search(str(error))
    return next((name for name in found.groups() if name), None) if found else None


def mend(error: ImportError) -> str:
    """The command or step that fixes a module that cannot be loaded."""
    if missing_library(error) is None:
        return f"pip install {_PACKAGES.get(error.name or '', error.name or 'the package')}"
    if _is_opencv(error):
        return SWAP_OPENCV
    return "install the system's package that has it"


def explain(error: ImportError) -> str | None:
    """One sentence about a module that cannot be loaded; None if it is one of this project's own."""
    library, module = missing_library(error), (error.name or "").partition(".")[0]
    if library is not None:
        if _is_opencv(error):
            return (
                f"OpenCV cannot be loaded, as the system lacks {library}: install that, or use OpenCV's headless wheel, "
                f"which does not need it, with `{SWAP_OPENCV}`"
            )
        return f"{module or 'a module'} cannot be loaded, as the system lacks {library}: {mend(error)}"
    if isinstance(error, ModuleNotFoundError) and module and module not in _OURS:
        return f"the package {_PACKAGES.get(module, module)} is not installed: `{mend(error)}`"
    return None


_OURS = ("convnextpose", "engines", "pipeline", "tools")
_PACKAGES = {"cv2": "opencv-python"}


def _is_opencv(error: ImportError) -> bool:
    """Whether OpenCV was being loaded: by the error's module name, its file, or the files in its traceback."""
    trace = error.__traceback__
    while trace is not None:
        if "cv2" in re.split(r"[\\/]", trace.tb_frame.f_code.co_filename):
            return True
        trace = trace.tb_next
    return error.name == "cv2" or "cv2" in (error.path or "")
