"""The fault suite: thousands of tasks while processes, broker, network and disk fail, and a count of what that cost.

``python -m tests.faults`` (``make faults``) runs it and prints a table; `test_faults` is a small run of the same.
"""
