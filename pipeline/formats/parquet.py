"""Parquet: the table of `csv_table.py` with types, compressed; needs pyarrow, the extra `parquet`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from convnextpose.errors import RuntimeUnavailableError, install_command
from pipeline.formats.csv_table import COLUMNS, CsvRecorder, columns_of
from pipeline.formats.motion import Export, compare
from pipeline.types import RunHeader


class ParquetRecorder(CsvRecorder):
    """Writes `poses.parquet`: a row group for each person."""

    def __init__(self, path: Path, header: RunHeader, *, overwrite: bool = False, export: Export | None = None) -> None:
        """As for every recorder.

        Raises:
            RuntimeUnavailableError: pyarrow is not installed.
        """
        try:
            import pyarrow.parquet  # noqa: F401  # to fail now and not at the end
        except ImportError as error:
            raise RuntimeUnavailableError(f"Parquet needs pyarrow: {error}; {install_command('parquet')}") from error
        super().__init__(path, header, overwrite=overwrite, export=export)

    def _write_part(self, part: Path, content: Any) -> None:  # noqa: ANN401
        import pyarrow
        import pyarrow.parquet

        types = {"source": pyarrow.string(), "joint": pyarrow.string(), "frame": pyarrow.int64(), "track_id": pyarrow.int64()}
        types |= dict.fromkeys(("time_s", "x_mm", "y_mm", "z_mm"), pyarrow.float64())
        schema = pyarrow.schema([(name, types.get(name, pyarrow.float32())) for name in COLUMNS])
        with pyarrow.parquet.ParquetWriter(part, schema, compression="zstd") as writer:
            for track_id in content:
                writer.write_table(pyarrow.table(columns_of(self.track(track_id), self._header.source, self.names()), schema))

    def _check_part(self, part: Path, content: Any) -> None:  # noqa: ANN401
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(part) as file:
            if tuple(file.schema_arrow.names) != COLUMNS or file.num_row_groups < len(content):
                raise ValueError(f"expected the columns {', '.join(COLUMNS)}")
            rows = file.read(["track_id", "x_mm", "y_mm", "z_mm"])
        ids = rows["track_id"].to_numpy()
        places = np.column_stack([rows[name].to_numpy() for name in ("x_mm", "y_mm", "z_mm")])
        for track_id in content:
            track = self.track(track_id)
            compare("positions, mm,", track.joints_mm.reshape(-1, 3), places[ids == track_id], 0.0)
