"""What can go wrong, made to happen: each row of docs/results/faults.md is a test here.

Commands run in processes of their own, against real servers, files, limits and signals.
A row checks that the command says in one line what happened and what to do, that nothing
is lost or half-written, and that the next run works.
"""
