import pytest

pytest.register_assert_rewrite(
    *(f"tests.storage.{name}" for name in ("archive_contract", "contract", "history_contract", "parquet_contract", "search_contract"))
)
