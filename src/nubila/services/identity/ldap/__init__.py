"""Users and groups of a domain that are kept in an LDAP directory. Assignments stay in this database.

The directory is the truth; this database keeps a copy of every user and group that was ever asked for, so that all
else (grants, tokens, filters, paging, policy) works as it does for any other user. Reads compare the copy with the
directory first; writes go to the directory first. Nobody talks to a directory on the event loop or in a handler's
thread: each directory has a few threads of its own, a bound on the time of every call, and a circuit breaker
(core/elsewhere.py says how a handler waits).

options.py what an operator writes; client.py the protocol and its library; entries.py entries to rows and back;
directory.py what can be asked of one directory; guard.py threads, time limits, breaker; copies.py the rows in this
database; registry.py which domain has which directory; reads.py and writes.py what Identity's handlers call.
"""
