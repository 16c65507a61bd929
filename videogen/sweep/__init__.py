"""Settings against each other: axes -> runs -> rows -> a page that says which to use.

    axes.py      steps=4,8 guidance=1:7:7, grid.toml      ->  the settings to try
    plan.py      prompts, seeds, settings                 ->  runs, and a folder that holds one sweep only
    packs.py     runs                                     ->  latents, many runs in each network call
    measures.py  frames, reference                        ->  numbers
    table.py     rows                                     ->  results.parquet, results.csv
    work.py      a plan and a pipeline                    ->  clips and rows; resumes, survives, stops cleanly
    search.py    the same, settings chosen by Optuna
    summary.py   rows                                     ->  means with intervals, what is undominated, what to use
    words.py     the summary                              ->  sentences
    plots.py pictures.py page.py                          ->  plots, grid.mp4 and contact.png, report.html
    command.py   `sample.py ... --sweep`

The files stand in the order that the data takes.
"""
