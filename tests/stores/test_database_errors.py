"""Every error of PostgreSQL, psycopg and its pool is mapped to one of the product's errors."""

import inspect
import pickle

import psycopg
import psycopg_pool
import pytest
from psycopg import errors as psycopg_errors

from backends.postgres.errors import (
    BY_CLASS,
    BY_SQLSTATE,
    is_about_the_row,
    translate,
    without_values,
)
from contracts.errors import (
    Conflict,
    DaarionError,
    DatabaseUnavailable,
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    Overloaded,
)

KNOWN = [
    error
    for _, error in inspect.getmembers(psycopg_errors, inspect.isclass)
    if issubclass(error, psycopg.Error) and getattr(error, "sqlstate", None)
]
WITHOUT_SQLSTATE = [
    error
    for module in (psycopg_errors, psycopg_pool)
    for _, error in inspect.getmembers(module, inspect.isclass)
    if issubclass(error, Exception)
    and not getattr(error, "sqlstate", None)
    and not issubclass(error, Warning)
]


def test_psycopg_knows_hundreds_of_codes_and_each_class_has_its_row() -> None:
    assert len(KNOWN) > 200
    missing = {error.sqlstate[:2] for error in KNOWN} - BY_CLASS.keys()
    assert not missing, f"SQLSTATE classes without a row in BY_CLASS: {sorted(missing)}"


def test_exceptions_to_a_class_are_codes_that_exist() -> None:
    assert BY_SQLSTATE.keys() <= {error.sqlstate for error in KNOWN}


@pytest.mark.parametrize("error", [*KNOWN, *WITHOUT_SQLSTATE], ids=lambda error: error.__name__)
def test_every_error_becomes_a_leaf_without_foreign_text(error: type[Exception]) -> None:
    translated = translate(error("secret value of a row"))
    assert isinstance(translated, DaarionError)
    assert translated.type != DaarionError.type or type(translated) is Internal
    assert "secret" not in translated.message
    assert pickle.loads(pickle.dumps(translated)).message == translated.message


@pytest.mark.parametrize(
    ("error", "leaf"),
    [
        (psycopg_pool.PoolTimeout, DatabaseUnavailable),
        (psycopg_pool.PoolClosed, DatabaseUnavailable),
        (psycopg_pool.TooManyRequests, Overloaded),
        (psycopg.OperationalError, DatabaseUnavailable),
        (psycopg_errors.ConnectionTimeout, DatabaseUnavailable),
        (psycopg_errors.ConnectionFailure, DatabaseUnavailable),
        (psycopg_errors.AdminShutdown, DatabaseUnavailable),
        (psycopg_errors.CrashShutdown, DatabaseUnavailable),
        (psycopg_errors.CannotConnectNow, DatabaseUnavailable),
        (psycopg_errors.TooManyConnections, DatabaseUnavailable),
        (psycopg_errors.DiskFull, DatabaseUnavailable),
        (psycopg_errors.DeadlockDetected, DatabaseUnavailable),
        (psycopg_errors.SerializationFailure, DatabaseUnavailable),
        (psycopg_errors.LockNotAvailable, DatabaseUnavailable),
        (psycopg_errors.UndefinedTable, DatabaseUnavailable),
        (psycopg_errors.UndefinedFunction, DatabaseUnavailable),
        (psycopg_errors.InvalidPassword, DatabaseUnavailable),
        (psycopg_errors.QueryCanceled, DeadlineExceeded),
        (psycopg_errors.UniqueViolation, Conflict),
        (psycopg_errors.ForeignKeyViolation, Conflict),
        (psycopg_errors.CharacterNotInRepertoire, InvalidRequest),
        (psycopg_errors.UntranslatableCharacter, InvalidRequest),
        (psycopg.DataError, InvalidRequest),
        (psycopg_errors.SyntaxError, Internal),
        (psycopg_errors.InsufficientPrivilege, Internal),
        (psycopg_errors.NotNullViolation, Internal),
        (psycopg.InterfaceError, Internal),
    ],
)
def test_common_errors_map_to_their_leaves(
    error: type[Exception], leaf: type[DaarionError]
) -> None:
    assert type(translate(error("x"))) is leaf


def test_a_parameter_that_is_no_unicode_is_the_callers_fault() -> None:
    with pytest.raises(UnicodeEncodeError) as raised:
        "\ud800".encode()
    assert type(translate(raised.value)) is InvalidRequest


def test_a_retry_helps_where_the_database_is_away_and_not_where_the_value_is_bad() -> None:
    assert translate(psycopg.OperationalError()).retryable
    assert not translate(psycopg.DataError()).retryable


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (psycopg_errors.NotNullViolation, True),
        (psycopg_errors.InvalidTextRepresentation, True),
        (psycopg_errors.UndefinedTable, False),
        (psycopg_errors.InsufficientPrivilege, False),
        (psycopg.OperationalError, False),
        (psycopg.DataError, True),
    ],
)
def test_which_failures_are_about_one_row(error: type[Exception], *, expected: bool) -> None:
    translated = translate(error("x"))
    translated.__cause__ = error("x")
    assert is_about_the_row(translated) is expected


def test_a_log_sees_the_code_and_not_the_text() -> None:
    assert (
        str(
            without_values(
                psycopg_errors.UniqueViolation("Key (content)=(private words) already exists")
            )
        )
        == "23505"
    )
    assert str(without_values(ValueError("kept"))) == "kept"
