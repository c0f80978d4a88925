"""From run folders to a comparison that can stand in a paper: ``fedsim-report DIR...``.

    runs        finds and reads run folders, finished or not
    methods     what was compared (methods) and under what (settings)
    statistics  means with intervals over seeds, paired differences
    axes        rounds, megabytes, seconds, epsilon, virtual time; what it cost to reach a target
    commands    the command line of each row
    compare     one setting: its methods, tables and curves
    charts      curves with bands as SVG that follows the page's colours
    tables      Markdown, LaTeX, CSV and Parquet
    page        the HTML page

Imports point from the bottom of this list upwards.
"""
