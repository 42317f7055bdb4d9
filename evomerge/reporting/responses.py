"""Every answer of a run as one table: a row for each trial, objective and item."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evomerge.datatypes import Split
from evomerge.errors import ConfigError
from evomerge.history import History, Trial

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".parquet", ".csv")


def write_responses(history: History, path: Path) -> int:
    """Write the answers of a run as Parquet or CSV, by the file's suffix; the number of rows.

    Columns: `trial`, `is_baseline`, `split`, `objective`, `item` (its number in the split),
    `column` (0 but for statistics of several numbers per item) and `response`.

    Raises:
        ConfigError: when the suffix is neither.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(
            f"responses are written as one of {', '.join(SUFFIXES)}, but the file is {path.name}: "
            "give it one of these endings"
        )
    import pyarrow as pa
    from pyarrow import csv, parquet

    schema = pa.schema(
        [
            ("trial", pa.string()),
            ("is_baseline", pa.bool_()),
            ("split", pa.string()),
            ("objective", pa.string()),
            ("item", pa.int64()),
            ("column", pa.int16()),
            ("response", pa.float64()),
        ]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    make = parquet.ParquetWriter if path.suffix == ".parquet" else csv.CSVWriter
    n_rows = 0
    with make(str(temporary), schema) as writer:
        for trial in history.trials.values():
            for batch in _batches(history, trial, schema):
                writer.write_table(pa.Table.from_batches([batch]))
                n_rows += batch.num_rows
    temporary.replace(path)
    return n_rows


def _batches(history: History, trial: Trial, schema: "pa.Schema") -> "Iterator[pa.RecordBatch]":
    import pyarrow as pa

    for split in Split:
        for objective in history.objectives:
            answers = history.answers(trial.name, split, objective.name)
            n = len(answers.items)
            if n == 0:
                continue
            values = answers.values.reshape(n, -1)
            n_columns = values.shape[1]
            order = np.argsort(answers.items, kind="stable")
            rows = n * n_columns
            yield pa.record_batch(
                [
                    pa.array([trial.name] * rows),
                    pa.array([trial.is_baseline] * rows),
                    pa.array([split.value] * rows),
                    pa.array([objective.name] * rows),
                    pa.array(np.repeat(answers.items[order], n_columns)),
                    pa.array(np.tile(np.arange(n_columns, dtype=np.int16), n)),
                    pa.array(values[order].ravel()),
                ],
                schema=schema,
            )
