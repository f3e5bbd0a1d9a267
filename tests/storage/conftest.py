import pytest

pytest.register_assert_rewrite("tests.storage.archive_contract", "tests.storage.contract", "tests.storage.history_contract", "tests.storage.search_contract")
