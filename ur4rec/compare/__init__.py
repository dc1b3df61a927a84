"""Studies: schedules side by side, from the same weights and data order, at equal updates and at equal cost.

`study` states what is compared, `workers` runs what is missing, `summary` and `report` present the results.
`directory` and `packed` keep the runs.
"""
