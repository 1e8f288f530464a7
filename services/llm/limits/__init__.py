"""Limits of callers, exact across replicas by leases.

- `limiter`: a replica's side, implements Limiter: reserves and settles calls, reports.
- `balances`: all balances of a replica; makes its reports and takes the replies.
- `balance`: a replica's units of one limit.
- `lease_book`: the authority's side: grants units so that no limit is exceeded.
- `protocol`: the messages between the two, their constants and calendar periods.
- `windows`: the sliding window over spent units.
- `states`: the use case behind `GET /limits`.
"""
