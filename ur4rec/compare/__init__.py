"""Studies: schedules side by side, from the same weights and data order, at equal updates and at equal cost.

`study` says what is compared, `workers` runs what is missing, `summary` and `report` say what came out.
"""
