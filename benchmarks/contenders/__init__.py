"""Those who take part in the races: each a program of its own, asked over a pipe.

``python -m contenders LIBRARY MODULE MODE`` starts one; :mod:`contenders.serve` says what it
can be asked, :mod:`contenders.entries` which there are.
"""
