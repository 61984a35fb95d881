"""What every stage needs of the machine: files, processes, ranks, logs, stop signals, manifests.

Nothing here knows of data, models or commands.
"""
