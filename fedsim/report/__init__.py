"""From run folders to a comparison that can stand in a paper: ``fedsim-report DIR...``.

    runs        finds and reads run folders, finished or not
    sweeps      what a sweep's records add: commands, failures, jobs that left no run
    methods     what was compared (methods) and under what (settings)
    statistics  means with intervals over seeds, paired differences
    axes        rounds, megabytes, seconds, epsilon, virtual time; what it cost to reach a target
    command_lines  the command line of each row
    curves      a method's mean and band, round by round
    clients     how a metric is distributed over clients at the end
    compare     one setting: final values, differences, costs, curves
    charts      curves with bands as SVG that follows the page's colours
    tables      the tables, as Markdown and LaTeX
    export      one row per run, as CSV and Parquet
    page        the HTML page
    figures     the charts as PDF and for TensorBoard
    about       what stands around the tables
    build       all of a report, and its files

Imports point upwards in this list.
"""
