"""Translates the errors of psycopg and its pool into the product's error tree.

PostgreSQL names a failure by a five-character SQLSTATE; its first two characters are the class.
`BY_CLASS` has a row for every class, `BY_SQLSTATE` the codes that differ from their class. Messages
are our own: the server's text may quote values, names and SQL.
"""

from __future__ import annotations

import psycopg
from psycopg_pool import TooManyRequests

from configs.stores import why_refused
from contracts.errors import (
    Conflict,
    DaarionError,
    DatabaseUnavailable,
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    Overloaded,
)

_AWAY = (DatabaseUnavailable, "the database cannot be reached; try again")
_BUSY = (DatabaseUnavailable, "the database is busy; try again")
_SCHEMA = (
    DatabaseUnavailable,
    "the database schema does not match this version: run `python -m backends.postgres.migrate`",
)
_REFUSED = (DatabaseUnavailable, "the database refuses this service's login; check DATABASE_URL")
_SLOW = (DeadlineExceeded, "the database did not finish in time")
_CONFLICT = (Conflict, "this conflicts with what is already stored")
_VALUE = (
    InvalidRequest,
    "a value cannot be stored: no NUL characters, lone surrogates or numbers out of range",
)
_DEFECT = (Internal, "a database statement failed")

Translation = tuple[type[DaarionError], str]

BY_CLASS: dict[str, Translation] = {
    "00": _DEFECT,  # successful completion
    "01": _DEFECT,  # warning
    "02": _DEFECT,  # no data
    "03": _DEFECT,  # statement not yet complete
    "08": _AWAY,  # connection exception
    "09": _DEFECT,  # triggered action exception
    "0A": _DEFECT,  # feature not supported
    "0B": _DEFECT,  # invalid transaction initiation
    "0F": _DEFECT,  # locator exception
    "0L": _DEFECT,  # invalid grantor
    "0P": _DEFECT,  # invalid role specification
    "0Z": _DEFECT,  # diagnostics exception
    "10": _DEFECT,  # XQuery error
    "20": _DEFECT,  # case not found
    "21": _DEFECT,  # cardinality violation
    "22": _DEFECT,  # data exception
    "23": _DEFECT,  # integrity constraint violation
    "24": _DEFECT,  # invalid cursor state
    "25": _DEFECT,  # invalid transaction state
    "26": _DEFECT,  # invalid SQL statement name
    "27": _DEFECT,  # triggered data change violation
    "28": _REFUSED,  # invalid authorization specification
    "2B": _DEFECT,  # dependent privilege descriptors still exist
    "2D": _DEFECT,  # invalid transaction termination
    "2F": _DEFECT,  # SQL routine exception
    "34": _DEFECT,  # invalid cursor name
    "38": _DEFECT,  # external routine exception
    "39": _DEFECT,  # external routine invocation exception
    "3B": _DEFECT,  # savepoint exception
    "3D": _REFUSED,  # invalid catalog name: no such database
    "3F": _SCHEMA,  # invalid schema name
    "40": _BUSY,  # transaction rollback: deadlock, serialization failure
    "42": _DEFECT,  # syntax error or access rule violation
    "44": _DEFECT,  # WITH CHECK OPTION violation
    "53": _BUSY,  # insufficient resources: connections, memory, disk
    "54": _VALUE,  # program limit exceeded: a value too large for a row or an index
    "55": _BUSY,  # object not in prerequisite state: lock not available
    "57": _AWAY,  # operator intervention: shutdown, crash, starting up
    "58": _AWAY,  # system error outside PostgreSQL
    "72": _BUSY,  # snapshot failure
    "F0": _AWAY,  # configuration file error
    "HV": _DEFECT,  # foreign data wrapper error
    "P0": _DEFECT,  # PL/pgSQL error
    "XX": _DEFECT,  # internal error
}

BY_SQLSTATE: dict[str, Translation] = {
    "22001": _VALUE,  # string data right truncation
    "22003": _VALUE,  # numeric value out of range
    "22008": _VALUE,  # datetime field overflow
    "22021": _VALUE,  # character not in repertoire
    "22P05": _VALUE,  # untranslatable character, also \u0000 in JSON
    "23001": _CONFLICT,  # restrict violation
    "23503": _CONFLICT,  # foreign key violation
    "23505": _CONFLICT,  # unique violation
    "23P01": _CONFLICT,  # exclusion violation
    "25006": _AWAY,  # read-only transaction: a standby, or a server being moved
    "25P03": _AWAY,  # idle in transaction session timeout: the server hung up
    "25P04": _SLOW,  # transaction timeout
    "42703": _SCHEMA,  # undefined column
    "42883": _SCHEMA,  # undefined function
    "42P01": _SCHEMA,  # undefined table
    "57014": _SLOW,  # query canceled: statement timeout
}

DATA_CLASSES = frozenset({"22", "23"})


def translate(error: Exception) -> DaarionError:
    """Returns the leaf of the error tree for an error of psycopg, of its pool or of a parameter."""
    leaf, message = _translation(error)
    return leaf(message)


def without_values(error: Exception) -> Exception:
    """Returns `error` with a text that a log may hold.

    PostgreSQL quotes offending values, which are the users' words. The SQLSTATE and the names of
    the objects stay; the message only in class 42, where it describes the statement.
    """
    if isinstance(error, psycopg.Error) and error.sqlstate is not None:
        diag = error.diag
        names = (diag.table_name, diag.column_name, diag.constraint_name)
        message = diag.message_primary if error.sqlstate.startswith("42") else None
        error.args = (" ".join(part for part in (error.sqlstate, *names, message) if part),)
    return error


def is_about_the_row(error: DaarionError) -> bool:
    """Whether `error` concerns the data of one row; the statement may succeed with other rows."""
    cause = error.__cause__
    if isinstance(cause, psycopg.Error) and cause.sqlstate is not None:
        return cause.sqlstate[:2] in DATA_CLASSES
    return isinstance(error, InvalidRequest)


def _translation(error: Exception) -> Translation:
    if isinstance(error, UnicodeError):
        return _VALUE
    if isinstance(error, TooManyRequests):
        return Overloaded, "too many requests wait for the database; try again"
    if not isinstance(error, psycopg.Error):
        return _DEFECT
    if error.sqlstate is not None:
        return BY_SQLSTATE.get(error.sqlstate) or BY_CLASS.get(error.sqlstate[:2], _DEFECT)
    if (why := why_refused(error)) is not None:
        return DatabaseUnavailable, why
    if isinstance(error, psycopg.OperationalError):  # the pool's errors and lost connections
        return _AWAY
    if isinstance(error, psycopg.DataError):  # psycopg refused to send a parameter
        return _VALUE
    return _DEFECT
