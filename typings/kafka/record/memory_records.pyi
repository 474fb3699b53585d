# kafka-python ships no types, and those bundled with pyright describe its version 2.
from typing import Any

DefaultRecordBatchBuilder: Any

def __getattr__(name: str) -> Any: ...
