"""Sweep the settings: axes -> runs -> rows -> a page that recommends one setting.

    axes.py             steps=4,8 guidance=1:7:7, grid.toml    ->  the settings to try
    plan.py             prompts, seeds, settings               ->  runs, and a folder that holds one sweep only
    shared_calls.py     runs                                   ->  latents, many runs in each network call
    resource_usage.py   a device                               ->  seconds that count finished work, peak memory
    measures.py         frames, reference                      ->  numbers
    results.py          rows                                   ->  results.jsonl, results.csv
    runner.py           a plan and a pipeline                  ->  clips and rows; resumes, survives, stops cleanly
    search.py           the same, with settings chosen by Optuna
    summary.py          rows                                   ->  means with intervals, the Pareto front
    choice.py           settings                               ->  the one to recommend, or what the clips cannot tell
    findings.py         summary and choice                     ->  sentences
    plots.py, contact_sheet.py, report.py                      ->  plots, grid.mp4 and contact.png, report.html

The files are listed in the order in which data passes them; cli/sweep.py is the command, `sample.py ... --sweep`.
"""
