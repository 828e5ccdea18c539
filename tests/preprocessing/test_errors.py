"""Machine faults are told apart from faults of the input."""

from __future__ import annotations

import errno

import pytest

from preprocessing.errors import TooManyFailuresError, TransientError, UsageError, fault_message, is_output_fault


@pytest.mark.parametrize(
    ("code", "expected"), [(errno.ENOSPC, True), (errno.ESTALE, True), (errno.ENOENT, False), (errno.EINVAL, False)]
)
def test_an_output_fault_is_recognised_by_its_error_number(code: int, expected: bool) -> None:
    assert is_output_fault(OSError(code, "message")) is expected


def test_the_message_of_a_machine_fault_is_found_among_others() -> None:
    messages = "[h264] error while decoding MB 3 4\nav_interleaved_write_frame(): No space left on device\nlast"
    assert fault_message(messages) == "av_interleaved_write_frame(): No space left on device"
    assert fault_message("[h264] error while decoding MB 3 4") == ""


def test_each_error_has_its_exit_code() -> None:
    assert [error.exit_code for error in (UsageError, TooManyFailuresError, TransientError)] == [2, 3, 4]
