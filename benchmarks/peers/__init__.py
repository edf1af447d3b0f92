"""The contenders, each a file of at most 40 lines, set up as its own documentation advises for short tasks.

A peer has its one task, ``publish(called)``, which returns when the broker has confirmed what it can confirm, and
``worker(processes)``, the words of its own command line; if it has something faster for many at once, ``fill(count)``.
"""
