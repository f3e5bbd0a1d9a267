import pytest

pytest.register_assert_rewrite("tests.storage.contract", "tests.storage.search_contract")
