"""
What is decided here, and never waited for.

No module of this package opens a socket, reads a clock, throws dice or writes a log: time, randomness and facts come in
as arguments, decisions go out as values. A test (``tests/test_architecture.py``) holds it to that.
"""
