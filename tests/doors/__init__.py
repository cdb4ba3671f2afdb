import pytest

# Helpers whose assertions say as much as those of tests.
pytest.register_assert_rewrite("tests.doors.foreign", "tests.doors.literal")
