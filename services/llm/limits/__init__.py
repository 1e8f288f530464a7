"""Limits of callers, exact across replicas by leases.

- `limiter`: a replica's side, implements Limiter: reserves and settles calls, reports.
- `balances`: all balances of a replica; makes its reports and takes the replies.
- `balance`: a replica's units of one limit.
- `lease_book`: the authority's side: grants units so that no limit is exceeded.
- `protocol`: the messages between replica and authority, and their constants.
- `periods`: the calendar periods of limits of money.
- `states`: the use case behind `GET /limits`.
"""
